"""A comparison from beginning to end: the gate, the search phase, the trials, the report.

Knows nothing of Ray beyond its room's names, and of what a trial does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ArtifactError, RecipeError, extra
from engine.evaluators.ray_start import check_room
from engine.files import UnwritableError, write_text
from tuning import settings_text
from tuning.compare import experiment_trackers, provenance, zero_shot_gate
from tuning.compare.comparison import Comparison, make_comparison, trials_of
from tuning.compare.experiment_trackers import Board
from tuning.compare.hyperparameter_sweep import Plan, choose
from tuning.compare.trial import carry_out, done
from tuning.compare.tune_runner import Cluster, Connected, metrics_of, on_tune
from tuning.lease import Lease
from tuning.report.summary import remake

log = logging.getLogger(__name__)

SETTINGS, TRIALS = "compare.yaml", "trials"
PASSING = "working_dir_files"
"""Where a Ray node unpacks the working directories of submitted jobs."""


def compare(
    comparison: Comparison | None,
    out: str | Path,
    *,
    resume: bool = False,
    cluster: Cluster | None = None,
    trackers: Sequence[str] = (),
    board: Board | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Run a comparison and write its report; returns what `summary.json` holds.

    Args:
        comparison: its settings; None with `resume`, which takes them from the folder.
        out: the comparison's folder, on a file system that all nodes share.
        resume: go on with a folder that was begun; finished trials are not repeated, failed ones tried again.
        cluster: where trials run.
        trackers: of `tuning.compare.experiment_trackers.TRACKERS`.
        board: told of every trial's progress.
        stop: set by whoever wants it to end early; the report is then of what is there.

    Raises KeyholeError for a mistake in the settings, before anything runs; a trial that fails is a row of the report.
    """
    out, cluster = Path(out).absolute(), cluster or Cluster()
    board, stop = board or Board(lambda line: None), stop or threading.Event()
    callbacks = experiment_trackers.check(trackers)
    comparison = _settled(comparison, out, resume, tune=cluster.parallel != 0)
    if PASSING in out.parts:
        log.warning(
            "%s lies in the job's own copy of its working directory, which Ray deletes; give --out as an absolute path "
            "on a file system that all nodes share", out,
        )  # fmt: skip
    started = time.monotonic()
    ray = Connected(cluster)

    def run(folders: Sequence[Path], search: Plan | None = None) -> None:
        """Carry out what is not done yet."""
        todo = [folder for folder in folders if not done(folder)]
        board.expect(len(folders), len(folders) - len(todo))
        if (todo or (search is not None and not folders)) and not stop.is_set():
            if cluster.parallel == 0:
                _in_turn(todo, board, stop)
            else:
                on_tune(todo, out, cluster, callbacks, board, stop, search)

    with ray:
        if cluster.parallel != 0:
            pool = trials_of(comparison)[0].recipe["pool"]
            check_room(pool["cpus"], pool["gpus"], own=ray.own, what="a trial")
        # The lease makes the folder: last of what can fail before the first trial, so that a refusal leaves nothing.
        with Lease(out), _resumable(out):
            if not resume:
                _begin(comparison, out)
            with provenance.recorded(out, parallel=cluster.parallel, since=started):
                zero_shot_gate.check(comparison, out / "gate", run)
                chosen = choose(comparison, out / "search", run, in_turn=cluster.parallel == 0)
                if not stop.is_set():
                    run([trial.write(out / TRIALS) for trial in trials_of(comparison, chosen)])
            return remake(out)


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say how to go on after the disk was full."""
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(f"{error}, then go on with: keyhole compare --resume {out}") from error


def _settled(comparison: Comparison | None, out: Path, resume: bool, *, tune: bool) -> Comparison:
    """The settings, those of the folder for a resumed one, checked; nothing is written."""

    if resume:
        file = out / SETTINGS
        if not file.exists():
            raise ArtifactError(f"{out} holds no {SETTINGS}: nothing to resume; start it with keyhole compare --out")
        comparison = make_comparison(settings_text.read(file, "comparison"))
    assert comparison is not None
    trials_of(comparison)  # every mistake in the settings is found here ...
    zero_shot_gate.published(comparison)  # ... or here
    if tune and comparison.searcher == "optuna" and not experiment_trackers.installed("optuna"):
        raise RecipeError("searcher=optuna needs the package 'optuna'; " + extra("optuna"))
    return comparison


def _begin(comparison: Comparison, out: Path) -> None:
    """Write the settings of a comparison into its folder."""
    import yaml

    if (out / SETTINGS).exists():
        raise ArtifactError(f"{out} already holds a comparison; go on with it by --resume, or name another --out")
    (out / TRIALS).mkdir(exist_ok=True)
    write_text(out / SETTINGS, yaml.safe_dump(comparison.as_dict(), sort_keys=False))


def _in_turn(folders: Sequence[Path], board: Board, stop: threading.Event) -> None:
    """One trial after another: the plain loop, for machines without Ray and to measure what Tune adds."""
    for folder in folders:
        board.begun(folder)
        try:
            with closing(carry_out(folder)) as rounds:
                for step in rounds:
                    board.heard(folder, metrics_of(step))
                    if stop.is_set():
                        return
        except Exception:
            pass  # the trial's folder says why; the others go on
        board.ended(folder)
