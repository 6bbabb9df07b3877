"""Comparisons on Ray Tune: trials of one CPU each, in actors that are reused, so that torch is imported and a box
opened once per slot and not once per trial.

What is done is decided by the trials' own folders: a killed comparison goes on where each of its trials stood, and
Tune's own state is a log that nobody reads back. Knows nothing of what is compared and of how it is reported.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import BoxError, RecipeError
from engine.evaluators.ray_start import keeping_sigterm, reach
from engine.tuning_loop import Step
from tuning.compare.experiment_trackers import Board, Tracker
from tuning.compare.hyperparameter_sweep import Plan
from tuning.compare.trial import ERROR, TRIAL, carry_out, done, write_error, write_stopped

log = logging.getLogger(__name__)

TUNE = "tune"
OBJECT_STORE_BYTES = 200 * 2**20
"""Of a local Ray that a comparison starts itself: trials pass nothing through it."""
HEARD_S = 1.0
"""A trial tells how far it is no more often than this: a report waits for the driver."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where trials run."""

    parallel: int | None = None
    """Trials at once; None: as many as the cluster's CPUs and GPUs allow; 0: in this process, without Ray."""
    address: str | None = None
    """Of a running Ray; None: RAY_ADDRESS, or a local Ray for the time of the comparison."""


def metrics_of(step: Step) -> dict[str, float]:
    """What a running trial tells."""
    return {
        "evaluations": step.evaluations,
        "pairs": step.pairs,
        "loss": step.loss,
        "best_loss": step.best_loss,
        "val_loss": step.best.val_loss,
        "val_accuracy": step.best.val_accuracy,
    }


# ---------------------------------------------------------------------------------------------------------------------
# On Ray Tune


def _in_actor(config: Mapping[str, Any], *, make: Callable[[Mapping[str, Any]], Path], looks: bool, home: Path) -> None:
    """A trial in a Tune actor.

    An error that the trial raises stays in its folder and does not end the actor, which has torch and boxes loaded.
    """
    from ray import tune

    if home.is_dir():
        os.chdir(home)  # where relative paths of tasks mean what they mean to whoever started the comparison
    folder = make(config)
    heard = time.monotonic()
    metrics: dict[str, float] = {"evaluations": 0.0, "val_loss": float("inf")}
    try:
        with closing(carry_out(folder)) as rounds:
            for step in rounds:
                metrics = metrics_of(step)
                if (looks and step.look is not None) or time.monotonic() - heard > HEARD_S:
                    tune.report(metrics)  # does not come back where the scheduler or the user ends the trial
                    heard = time.monotonic()
    except Exception as error:
        tune.report({**metrics, "error": write_error(folder, error)})
        return
    tune.report({**metrics, **_outcome(folder)})


def _outcome(folder: Path) -> dict[str, Any]:
    """The numbers of a finished trial, for trackers."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except OSError:
        return {}
    names = ("evaluations", "accuracy", "zero_shot_accuracy", "val_accuracy", "train_loss", "test_pairs", "sequences")
    return {name: result[name] for name in names if result[name] is not None}


def _given(config: Mapping[str, Any]) -> Path:
    return Path(config["trial"]["folder"])


def on_tune(
    folders: Sequence[Path],
    out: Path,
    cluster: Cluster,
    callbacks: Sequence[Tracker],
    board: Board,
    stop: threading.Event,
    search: Plan | None,
) -> None:
    """Trials as Tune trials, as many at once as there is room for."""
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    attempts = out / TUNE
    number = 1 + max((int(path.name) for path in attempts.glob("*") if path.name.isdigit()), default=0)
    adaptive = search is not None and search.searcher != "random"
    if search is not None and adaptive:
        space = {path: _domain(tune, each) for path, each in search.spaces.items()}
        resources, make = search.pool, search.make
    else:
        space = {"trial": tune.grid_search([_shown(folder) for folder in folders])}
        resources, make = json.loads((folders[0] / TRIAL).read_text(encoding="utf-8"))["recipe"]["pool"], _given
    here = _Here(board, stop)
    asked = bool(callbacks) or (search is not None and search.asha)
    trainable = tune.with_resources(
        functools.partial(_in_actor, make=make, looks=asked, home=Path.cwd()),
        {"cpu": resources["cpus"], "gpu": resources["gpus"]},
    )
    tuner = Tuner(
        trainable,
        param_space=space,
        tune_config=TuneConfig(
            metric=None if search is None else "val_loss",
            mode=None if search is None else "min",
            search_alg=_searcher(search) if search is not None and adaptive else None,
            scheduler=_scheduler(search) if search is not None and search.asha else None,
            num_samples=search.samples if search is not None and adaptive else 1,
            max_concurrent_trials=cluster.parallel,
            reuse_actors=True,
            trial_dirname_creator=_title,
            trial_name_creator=_title,
        ),
        run_config=RunConfig(
            name=str(number),
            storage_path=str(attempts),
            verbose=0,
            failure_config=FailureConfig(max_failures=1),
            callbacks=[_listener(make, here), *(tracker.callback(out) for tracker in callbacks)],
            stop=_stopper(here),
        ),
    )
    try:
        tuner.fit()
    except KeyboardInterrupt:
        stop.set()
    board.clear()


def _shown(folder: Path) -> dict[str, Any]:
    """What trackers show of a trial's settings."""
    trial = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    recipe = trial["recipe"]
    return {
        "folder": str(folder),
        "method": trial["label"],
        **{name: recipe[name] for name in ("task", "box", "shots", "seed", "budget")},
    }


def _title(trial: Any) -> str:
    given = trial.config.get("trial")
    return Path(given["folder"]).name if given else trial.trial_id


def _domain(tune: Any, space: Any) -> Any:
    if space.kind in ("grid", "choice"):
        return tune.choice(list(space.values))
    return getattr(tune, space.kind)(*space.values)


def _searcher(search: Plan) -> Any:
    """Tune's searcher of this name; what was tried before is told first, and then costs nothing."""
    if search.searcher == "nevergrad":
        import nevergrad as ng
        from ray.tune.search.nevergrad import NevergradSearch

        # Few tries of few settings: (1+1) needs no population.
        return NevergradSearch(optimizer=ng.optimizers.OnePlusOne, points_to_evaluate=search.tried() or None)
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(seed=search.seed, points_to_evaluate=search.tried() or None)


def _scheduler(search: Plan) -> Any:
    """ASHA (Li et al. 2020, arXiv 1810.05934) over evaluations."""
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="evaluations", max_t=int(search.budget), grace_period=max(1, int(search.budget / 9)),
        reduction_factor=3,
    )  # fmt: skip


@dataclass(frozen=True)
class _Here:
    """What belongs to this process: Tune pickles its callbacks for a restore that we do not use."""

    board: Board | None = None
    stop: threading.Event | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Here, ()

    @property
    def stopping(self) -> bool:
        return self.stop is not None and self.stop.is_set()


def _listener(make: Callable[[Mapping[str, Any]], Path], here: _Here) -> Any:
    """Tune's callback that tells the board, and notes trials that died or that the scheduler ended."""
    from ray.tune import Callback

    class Listener(Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            here.board.begun(make(trial.config))

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            here.board.heard(make(trial.config), result)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            folder = make(trial.config)
            if here.stopping:
                return
            if not done(folder) and not (folder / ERROR).exists():
                write_stopped(folder)
            here.board.ended(folder)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            folder = make(trial.config)
            if not (folder / ERROR).exists():
                error = str(trial.get_pickled_error() or trial.get_error()).strip()
                write_error(folder, f"the trial's process died: {error.splitlines()[0] if error else 'no word of why'}")
            here.board.ended(folder)

    return Listener()


def _stopper(here: _Here) -> Any:
    """Tune's stopper that ends everything when the user asks."""
    from ray.tune.stopper import Stopper

    class Asked(Stopper):
        def __call__(self, trial_id: str, result: Any) -> bool:
            return here.stopping

        def stop_all(self) -> bool:
            return here.stopping

    return Asked()


# ---------------------------------------------------------------------------------------------------------------------
# Ray


class Connected:
    """Ray for the time of a comparison: the one that is there, or a local one that is ended afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.own = False

    def __enter__(self) -> None:
        if self.cluster.parallel == 0:
            return
        # Tune changes into each trial's folder otherwise, where relative paths of tasks mean something else; Ctrl-C is
        # the command line's; its loggers would write three files a trial that nobody asked for.
        for name, value in (
            ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
            ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
            ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("RAY_AIR_NEW_OUTPUT", "0"),
        ):
            os.environ.setdefault(name, value)
        try:
            import ray
            from ray import tune  # noqa: F401
        except ImportError:
            raise RecipeError(
                "a comparison needs Ray Tune: pip install 'ray[tune]', or run its trials in turn with --parallel 0"
            ) from None
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        if ray.is_initialized():
            return
        address = self.cluster.address or os.environ.get("RAY_ADDRESS")
        if address:
            if address.startswith("ray://"):
                raise RecipeError(
                    f"address {address!r}: a comparison runs inside the cluster; submit it as a job: "
                    "ray job submit --address http://HOST:8265 -- keyhole compare ..."
                )
            reach(address)
        try:
            with keeping_sigterm():
                if address:
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                else:
                    ray.init(
                        address="local",
                        num_cpus=max(os.cpu_count() or 1, self.cluster.parallel or 0),
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        object_store_memory=OBJECT_STORE_BYTES,
                    )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BoxError(
                f"no Ray at {address or 'this machine'} ({error}); check --address, and RAY_AUTH_MODE=token if the "
                "cluster asks for a token"
            ) from error
        self.own = True  # this process connected, and the local Ray, if it is one, ends with it

    def __exit__(self, *error: object) -> None:
        if self.own:
            import ray

            ray.shutdown()
