"""`keyhole bench overhead`: what a comparison on Ray Tune adds to a trial, beside the same trials in a plain loop.

Both ways run the very same trials, one at a time, in turns. A trial's own time is that from the end of the first trial
to the end of the last, over the trials between; what comes before (Ray, a worker, torch, the box) is the start, and is
told apart because it is paid once a slot and not once a trial.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.entry import Bench, Parser, header, line, numbers
from engine.errors import BoxError, RecipeError
from tuning.compare.comparison import make_comparison, split_list
from tuning.compare.conduct import compare
from tuning.compare.experiment_trackers import Board
from tuning.compare.tune_runner import Cluster

WAYS = {"loop": Cluster(parallel=0), "tune": Cluster(parallel=1)}


class _Clock(Board):
    """Notes when trials end."""

    def __init__(self) -> None:
        super().__init__(lambda text: None)
        self.begin = time.monotonic()
        self.ends: list[float] = []

    def ended(self, folder: Path) -> None:
        self.ends.append(time.monotonic() - self.begin)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """A row a budget: seconds of a trial in the loop and under Tune, and what Tune adds. Medians over turns.

    Raises:
        RecipeError: Too few trials or turns, or budgets that are no numbers.
        BoxError: A trial failed.
    """
    if given.trials < 2 or given.turns < 1:
        raise RecipeError("--trials must be 2 or more, --turns 1 or more")
    settings = {"tasks": [given.task], "boxes": [given.box], "seeds": list(range(1, given.trials + 1))}
    trackers = {"loop": (), "tune": split_list(given.track)}
    rows = []
    with tempfile.TemporaryDirectory() as home:
        # Image features are kept on disk: without this the way that comes first would pay for both.
        _timed({**settings, "methods": ["zero-shot"], "budget": 10}, Path(home, "warm"), "loop")
        for budget in numbers(given.budgets, float):
            wanted = {**settings, "methods": [given.method], "budget": budget}
            measured = []
            for turn in range(given.turns):
                each = {
                    way: _timed(wanted, Path(home, f"{budget:g}-{turn}-{way}"), way, trackers[way])
                    for way in (WAYS if turn % 2 == 0 else reversed(WAYS))
                }
                measured.append((each["loop"][1], each["tune"][1], each["tune"][0] - each["loop"][0]))
            loop, tune, start = (statistics.median(column) for column in zip(*measured, strict=True))
            rows.append({"budget": budget, "trials": given.trials, "loop_s": loop, "tune_s": tune,
                         "added_s": tune - loop, "added_share": tune / loop - 1, "start_s": start})  # fmt: skip
    return {"rows": rows}


def _timed(settings: dict[str, Any], out: Path, way: str, trackers: Sequence[str] = ()) -> tuple[float, float]:
    """Seconds to the end of the first trial, and seconds a trial from there on."""
    clock = _Clock()
    summary = compare(make_comparison(settings), out, cluster=WAYS[way], board=clock, trackers=trackers)
    if summary["failed"]:
        raise BoxError(f"a trial failed: {summary['failed'][0]['error']}")
    return clock.ends[0], (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [header("budget", "trials", "a trial in a loop", "on Tune", "added", "of the loop's", "start, once a slot")]
    for row in found["rows"]:
        cells = (f"{row['loop_s']:.2f} s", f"{row['tune_s']:.2f} s", f"{row['added_s']:+.2f} s",
                 f"{row['added_share']:+.1%}", f"{row['start_s']:.1f} s")  # fmt: skip
        lines.append(line(f"{row['budget']:g}", row["trials"], *cells))
    return "\n".join(lines)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("--task", default="mini:digits")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--method", default="momentum")
    parser.add_argument("--budgets", default="500,10000", help="a row each; the second lasts 30 s and more")
    parser.add_argument("--trials", type=int, default=5, help="by seed; 2 or more")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--track", default="", help="trackers to report to, divided by commas")


BENCH = Bench(settings=settings, measure=measure, table=table)
