"""`keyhole bench search`: what each method reaches with a given number of evaluations, on the embedded tasks.

Each (method, task, seed, budget) is a run of its own, since schedules scale to the budget; the runs of a budget are a
comparison (`keyhole compare`) in a folder of its own.

    keyhole bench search --step-sizes      # each method's step size is chosen on validation first, apart
    keyhole bench search --methods sketch:k=12,momentum --budgets 100,200 --seeds 1,2,3
    keyhole bench search --ablation        # sketch with one part taken out at a time
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.comparisons import TASKS
from bench.entry import Bench, Parser, numbers
from bench.search import ablation, pictures, step_sizes
from bench.search import tables as page
from bench.search.arms import HEAD, TEMPLATE, Arm, Setting, references, run
from engine.errors import RecipeError
from engine.files import write_text
from tuning.compare.comparison import split_list

METHODS = (
    *("sketch", "sketch:coupling=0", "sketch:prompt.per_class=false", "momentum", "nevergrad:DiagonalCMA"),
    *("nevergrad:CMA", "cbbt", "cbbt:rule=adam", "spsa-gc", "bar", "zip", "sharpzo", "bpt-vlm", "craft"),
    *(f"{name}:prompt.per_class=true" for name in ("momentum", "nevergrad:DiagonalCMA", "cbbt:rule=adam")),
)
"""The first ones stand out in the curves."""
BUDGETS = (100, 200, 500, 1000, 2000, 5000)
HEADLINE = ("sketch", "momentum", "nevergrad:DiagonalCMA")
"""Methods of the one-panel picture, ours first."""


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing; write tables, pictures and JSON to the folder. Raises KeyholeError."""
    budgets = numbers(given.budgets, float)
    seeds, step_seeds = numbers(given.seeds, int), numbers(given.step_seeds, int)
    arms = ablation.arms() if given.ablation else [Arm.read(word) for word in split_list(given.methods)]
    setting = Setting(
        tasks=split_list(given.tasks, uris=True), seeds=seeds, box=given.box, shots=given.shots,
        prompt={"name": given.prompt, "subspace": given.subspace, "tokens": given.tokens}, parallel=given.parallel,
    )  # fmt: skip
    chosen: dict[str, Any] = {}
    if given.step_sizes:
        if given.ablation or set(step_seeds) & set(seeds):
            raise RecipeError(
                "--step-sizes goes without --ablation, which leaves sketch its own settings, and --step-seeds "
                f"{given.step_seeds} must have none of --seeds {given.seeds}"
            )
        apart = replace(setting, seeds=step_seeds)
        arms, chosen = step_sizes.choose(
            arms, lambda candidates: run(candidates, [given.step_budget], apart, given.out / "steps")
        )
        write_text(given.out / "step_sizes.json", json.dumps(chosen, indent=2) + "\n")
    known = references(setting, given.out / "references")
    rows = run(arms, budgets, setting, given.out)
    where = {"box": setting.box, "shots": setting.shots, "prompt": dict(setting.prompt)}
    summary = {"tasks": list(setting.tasks), "budgets": sorted(budgets), "seeds": seeds, **where,
               "step_sizes": chosen, **page.summarise(rows, known)}  # fmt: skip
    name = "ablation" if given.ablation else "search"
    write_text(given.out / f"{name}.json", json.dumps(summary, indent=2) + "\n")
    write_text(given.out / f"{name}.md", table(summary) + "\n")
    pictures.curves(summary, given.out / f"{name}.png")
    _headline(rows, known, given.out / "headline.png")
    return summary


def _headline(rows: list[dict[str, Any]], known: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """The one-panel picture, where its methods were run."""
    shown = [row for label in HEADLINE for row in rows if row["label"] == label]
    if shown:
        means = {name: page.mean_reference(known, name, "accuracy") for name in (TEMPLATE, HEAD)}
        pictures.headline(shown, path, {name: mean for name, mean in means.items() if mean is not None})


def table(summary: Mapping[str, Any]) -> str:
    """Markdown."""
    chosen = summary["step_sizes"]
    return page.tables(summary) + (f"\n\n{step_sizes.table(chosen)}" if chosen else "")


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS), help="NAME or NAME:option=value, divided by commas")
    parser.add_argument("--ablation", action="store_true", help="sketch with one part taken out, in place of --methods")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--step-sizes", action="store_true", help="choose each method's step size on validation first")
    parser.add_argument("--step-budget", type=float, default=1000, help="evaluations of each run of that choice")
    parser.add_argument("--step-seeds", default="101,102", help="of that choice; none of --seeds")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--prompt", default="text")
    parser.add_argument("--subspace", default=None, help="for all methods, also those that have one of their own")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--parallel", type=int, default=2, help="runs at once; 0: in this process, without Ray")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))


BENCH = Bench(settings=settings, measure=measure, table=table)
