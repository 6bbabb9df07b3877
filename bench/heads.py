"""`keyhole bench heads`: what a prompt, a head and both together reach on the embedded tasks.

Test accuracy of every head alone (on the template), of a searched prompt alone, of that prompt with each head fitted to
the answers already paid for, and of white-box CoOp. `auto` is the head, or none, that validation chooses; it is the
only row of its kind that a user can have, the best of the others being known only afterwards.

All of it is one comparison (`keyhole compare`) in the folder `--out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.comparisons import TASKS, Row, carry_out
from bench.entry import Bench, Parser, header, line, numbers
from engine.artifact import Artifact
from engine.heads import HEADS
from tuning.compare.comparison import Comparison, make_comparison, split_list
from tuning.recipe import make_recipe

TEMPLATE, COOP = "zero-shot", "ceiling:coop"
CHUNK = 8
"""Candidates encoded together."""


def comparison(given: argparse.Namespace) -> Comparison:
    """Heads alone, and the method with each of them and with none. Raises RecipeError for an option that it lacks."""
    options = make_recipe({"method": {"name": given.method}}, [f"method.{word}" for word in given.options]).options
    return make_comparison(
        {
            "tasks": split_list(given.tasks, uris=True),
            "seeds": numbers(given.seeds, int),
            "boxes": given.box,
            "budget": given.budget,
            "methods": [TEMPLATE, *(f"head:{name}" for name in HEADS), {"name": given.method, **options}, COOP],
            "recipe": {"head": {"grid": [None, *HEADS]}, "pool": {"chunk": CHUNK}},
            "title": f"keyhole bench heads, {given.method}",
        }
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """A row a trial. Raises KeyholeError for a user's mistake."""
    rows = carry_out({given.out: comparison(given)}, given.parallel, optional=(COOP,))[given.out]
    names = ("task", "seed", "evaluations", "accuracy", "val_accuracy", "train_loss", "seconds")
    return {
        "trials": [
            {"what": _words(row), **{name: row[name] for name in names}, "val_loss": _val_loss(given.out, row)}
            for row in rows
        ]
    }


def _val_loss(folder: Path, row: Row) -> float | None:
    """Validation cross-entropy of the head, as its artifact keeps it, or of a prompt that has none."""
    kept = Artifact.load(folder / "trials" / row["trial"]).arrays
    return next((float(value) for name, value in kept.items() if name.endswith(".val_loss")), row["val_loss"])


def _words(row: Row) -> str:
    """How a table names a trial."""
    if row["method"] in (TEMPLATE, COOP):
        return {TEMPLATE: "zero-shot", COOP: "CoOp (white box)"}[row["method"]]
    if row["method"].startswith("head:"):
        return f"`{row['method'].removeprefix('head:')}`, head alone"
    head = row["config"]["head"]
    return f"`{head}`, with the prompt" if head else "prompt alone"


def table(found: dict[str, Any]) -> str:
    """Markdown: a line a combination, test accuracy in % by task, mean over seeds; the last column the tasks' mean."""
    rows: Sequence[Row] = found["trials"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [header("what", *tasks, "mean")]
    for what in dict.fromkeys(row["what"] for row in rows):
        mine = [row for row in rows if row["what"] == what]
        cells = [100 * float(np.mean([row["accuracy"] for row in mine if row["task"] == task])) for task in tasks]
        lines.append(line(what, *(f"{cell:.1f}" for cell in [*cells, float(np.mean(cells))])))
    return "\n".join(lines)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="the method's own settings")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--method", default="sketch")
    parser.add_argument("--budget", type=float, default=500)
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once; 0: in this process, without Ray")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-heads"))


BENCH = Bench(settings=settings, measure=measure, table=table)
