"""`keyhole bench overhead`: what a comparison on Ray Tune adds to a trial, beside the same trials in a plain loop.

Both ways run the very same trials, one at a time, in turns. A trial's own time is that from the end of the first trial
to the end of the last, over the trials between; what comes before (Ray, a worker, torch, the box) is the start, and is
told apart because it is paid once a slot and not once a trial.
Knows nothing of how trials are carried out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.entry import Answering, Parser, enter, numbers
from engine.errors import BoxError
from tuning.compare.comparison import make_comparison
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


def run(
    task: str, box: str, method: str, budgets: Sequence[float], trials: int, turns: int, trackers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A row a budget: seconds of a trial in the loop and under Tune, and what Tune adds. Medians over turns."""
    settings = {"tasks": [task], "boxes": [box], "seeds": list(range(1, trials + 1))}
    with tempfile.TemporaryDirectory() as home:
        # Image features are kept on disk: without this the way that comes first would pay for both.
        _timed({**settings, "methods": ["zero-shot"], "budget": 10}, Path(home, "warm"), "loop")
        rows = []
        for budget in budgets:
            measured = []
            for turn in range(turns):
                each = {
                    way: _timed(
                        {**settings, "methods": [method], "budget": budget},
                        Path(home, f"{budget:g}-{turn}-{way}"),
                        way,
                        trackers if way == "tune" else (),
                    )
                    for way in (WAYS if turn % 2 == 0 else reversed(WAYS))
                }
                measured.append((each["loop"][1], each["tune"][1], each["tune"][0] - each["loop"][0]))
            loop, tune, start = (statistics.median(column) for column in zip(*measured, strict=True))
            rows.append({"budget": budget, "trials": trials, "loop_s": loop, "tune_s": tune, "added_s": tune - loop,
                         "added_share": tune / loop - 1, "start_s": start})  # fmt: skip
    return rows


def _timed(settings: dict[str, Any], out: Path, way: str, trackers: Sequence[str] = ()) -> tuple[float, float]:
    """Seconds to the end of the first trial, and seconds a trial from there on."""
    clock = _Clock()
    summary = compare(make_comparison(settings), out, cluster=WAYS[way], board=clock, trackers=trackers)
    if summary["failed"]:
        raise BoxError(f"a trial failed: {summary['failed'][0]['error']}")
    return clock.ends[0], (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| budget | trials | a trial in a loop | on Tune | added | of the loop's | start, once a slot |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['budget']:g} | {row['trials']} | {row['loop_s']:.2f} s | {row['tune_s']:.2f} s | "
            f"{row['added_s']:+.2f} s | {row['added_share']:+.1%} | {row['start_s']:.1f} s |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """The command. Exit codes: 0, 2 for a user's mistake, 3 where a trial failed."""
    parser = Parser("overhead", __doc__)
    parser.add_argument("--task", default="mini:digits")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--method", default="momentum")
    parser.add_argument("--budgets", default="500,10000", help="a row each; the second lasts 30 s and more")
    parser.add_argument("--trials", type=int, default=5, help="by seed; 2 or more")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--track", default="", help="trackers to report to, divided by commas")

    def measure(given: argparse.Namespace) -> dict[str, Any]:
        if given.trials < 2 or given.turns < 1:
            parser.error("--trials must be 2 or more, --turns 1 or more")
        budgets = numbers(given.budgets, float)
        trackers = [name for name in given.track.split(",") if name]
        return {"rows": run(given.task, given.box, given.method, budgets, given.trials, given.turns, trackers)}

    return enter(parser, arguments, measure, lambda found: table(found["rows"]), answer=answer)


if __name__ == "__main__":
    sys.exit(main())
