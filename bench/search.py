"""`keyhole bench search`: what each method reaches with a given number of evaluations, on the embedded tasks.

Each (method, task, seed, budget) is a run of its own, since schedules scale to the budget. Trials are appended to
`trials.jsonl` and are not repeated when the command runs again, unless a setting or a default has changed.

    keyhole bench search --step-sizes      # each method's step size is chosen on validation first, apart
    keyhole bench search --methods sketch:k=12,momentum --budgets 100,200 --seeds 1,2,3
    keyhole bench search --ablation        # sketch with one part taken out at a time

Knows nothing of how trials run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import ablation, search_page, search_steps
from bench.entry import Answering, Parser, enter, numbers
from bench.search_trials import REFERENCE, Arm, run, with_heads
from engine.errors import RecipeError
from engine.files import write_text
from tuning.compare.comparison import split_list

TASKS = ("mini:digits", "mini:biased", "mini:bgcol", "mini:countw", "mini:color")
METHODS = (
    *("sketch", "sketch:coupling=0", "sketch:prompt.per_class=false", "momentum", "nevergrad:DiagonalCMA"),
    *("nevergrad:CMA", "cbbt", "cbbt:rule=adam", "spsa-gc", "bar", "zip", "sharpzo", "bpt-vlm", "craft"),
    *(f"{name}:prompt.per_class=true" for name in ("momentum", "nevergrad:DiagonalCMA", "cbbt:rule=adam")),
)
"""The first ones stand out in the pictures."""
BUDGETS = (100, 200, 500, 1000, 2000, 5000)


def report(given: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing; write tables, curves and JSON to the folder. Raises KeyholeError."""
    tasks = split_list(given.tasks, uris=True)
    budgets, seeds = numbers(given.budgets, float), numbers(given.seeds, int)
    arms = ablation.arms() if given.ablation else [Arm.read(word) for word in split_list(given.methods)]
    prompt = {"name": given.prompt, "subspace": given.subspace, "tokens": given.tokens}
    where = {"box": given.box, "shots": given.shots, "prompt": prompt}
    trials = partial(run, where=where, processes=given.processes)
    chosen: dict[str, Any] = {}
    if given.step_sizes:
        step_seeds = numbers(given.step_seeds, int)
        if given.ablation or set(step_seeds) & set(seeds):
            raise RecipeError(
                "--step-sizes goes without --ablation, which leaves sketch its own settings, and --step-seeds "
                f"{given.step_seeds} must have none of --seeds {given.seeds}"
            )
        apart = {"seeds": step_seeds, "budgets": [given.step_budget], "out": given.out / "steps.jsonl"}
        arms, chosen = search_steps.choose(arms, partial(trials, tasks=tasks, **apart))
        write_text(given.out / "step_sizes.json", json.dumps(chosen, indent=2) + "\n")
    trials = partial(trials, tasks=tasks, seeds=seeds, out=given.out / "trials.jsonl")
    known = trials([Arm(label=REFERENCE, method=REFERENCE, options={})], budgets=[1])
    rows = trials(arms, budgets=budgets)
    settings = {"tasks": list(tasks), "budgets": sorted(budgets), "seeds": seeds, **where}
    summary = {**settings, "step_sizes": chosen, **search_page.summarise(with_heads(rows), known)}
    name = "ablation" if given.ablation else "search"
    write_text(given.out / f"{name}.json", json.dumps(summary, indent=2) + "\n")
    write_text(given.out / f"{name}.md", tables(summary) + "\n")
    search_page.picture(summary, given.out / f"{name}.png")
    return summary


def tables(summary: Mapping[str, Any]) -> str:
    """Markdown."""
    chosen = summary["step_sizes"]
    return search_page.tables(summary) + (f"\n\n{search_steps.table(chosen)}" if chosen else "")


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """The command. Exit codes: 0, 2 for a user's mistake."""
    parser = Parser("search", __doc__)
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
    parser.add_argument("--processes", type=int, default=2, help="trials at once; 0: in this process")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    return enter(parser, arguments, report, tables, answer=answer)


if __name__ == "__main__":
    sys.exit(main())
