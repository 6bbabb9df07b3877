"""Benches that are comparisons: folders of `keyhole compare`, begun, continued, and read for their rows.

A finished folder is read and nothing in it is run again, so a bench that was interrupted continues when it is called
again. `keyhole report FOLDER` shows each by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from engine.errors import ArtifactError, BoxError
from tuning.answer import interruptible
from tuning.compare.comparison import Comparison, trials_of
from tuning.compare.conduct import SETTINGS, compare
from tuning.compare.experiment_trackers import Board
from tuning.compare.tune_runner import Cluster, Connected
from tuning.report.summary import rows_of, settings_of
from tuning.run_folder import read_history

TASKS = ("mini:digits", "mini:biased", "mini:bgcol", "mini:countw", "mini:color")
"""The core tasks: `keyhole bench tasks` says why."""
CHUNK = 32
"""Candidates evaluated together: a small text tower takes as long for one as for three."""

Row = dict[str, Any]


def carry_out(
    comparisons: Mapping[Path, Comparison], parallel: int | None, optional: Collection[str] = ()
) -> dict[Path, list[Row]]:
    """Run what is missing of comparisons, and read them.

    Args:
        comparisons: By folder.
        parallel: Trials at once on Ray Tune; None: as many as there is room for; 0: in turn, without Ray.
        optional: Methods that a box may refuse; their rows are then missing.

    Returns:
        By folder a row a trial: a row of `results.csv`, with `best_loss`, the lowest training loss that was seen (with
        a head, the head's), and `val_loss`, the lowest validation
        loss of a prompt, None where none was searched.

    Raises:
        RecipeError: A setting that nobody has, before anything runs.
        ArtifactError: A folder holds another comparison.
        BoxError: A trial failed; the same command tries it again.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the runs have ended with a checkpoint.
    """
    for folder, comparison in comparisons.items():
        trials_of(comparison)
        if (folder / SETTINGS).exists() and settings_of(folder).as_dict() != comparison.as_dict():
            raise ArtifactError(f"{folder} holds a comparison with other settings; name another --out, or remove it")
    todo = {folder: it for folder, it in comparisons.items() if any(row["error"] for row in rows_of(folder, it))}
    if todo:
        _run(todo, Cluster(parallel=parallel))
    found = {}
    for folder, comparison in comparisons.items():
        rows = [row for row in rows_of(folder, comparison) if not row["error"] or row["method"] not in optional]
        failed = [row for row in rows if row["error"]]
        if failed:
            raise BoxError(
                f"{len(failed)} of {len(rows)} trials in {folder} failed, the first one {failed[0]['trial']}: "
                f"{failed[0]['error']}; the same command tries them again"
            )
        found[folder] = [{**row, **_losses(folder, row)} for row in rows]
    return found


def _run(comparisons: Mapping[Path, Comparison], cluster: Cluster) -> None:
    board = Board(lambda text: print(text, end="", file=sys.stderr), live=sys.stderr.isatty())
    promise = "ending the runs; the same command continues them ..."
    with Connected(cluster), interruptible(promise) as interrupted:
        for folder, comparison in comparisons.items():
            begun = (folder / SETTINGS).exists()
            compare(None if begun else comparison, folder, resume=begun, cluster=cluster, board=board, stop=interrupted)
            if interrupted.is_set():
                raise KeyboardInterrupt


def _losses(folder: Path, row: Row) -> dict[str, float | None]:
    history = read_history(folder / "trials" / row["trial"])
    looked = [line["val_loss"] for line in history if line["val_loss"] is not None]
    searched = history and not row["head"]
    return {
        "best_loss": history[-1]["best_loss"] if searched else row["train_loss"],
        "val_loss": min(looked, default=None),
    }
