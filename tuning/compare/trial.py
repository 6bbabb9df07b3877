"""Trials of a comparison: the folder is the truth. Each is an ordinary run folder with two files besides:

`trial.json`, what it is, written before it starts, and `reads.json`, what was read of its artifact afterwards (other
classes, other tasks). A trial is done when both `result.json` and `reads.json` are there; until then it is begun, or
gone on with, from what its folder holds. A failed one leaves `error.json`.
Knows nothing of Ray and of reports.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.artifact import Artifact
from engine.errors import ArtifactError, KeyholeError
from engine.files import write_text
from engine.tuning_loop import Step
from tuning.compare.opened import opened
from tuning.evaluate import evaluate
from tuning.lease import PATIENCE_S
from tuning.recipe import Recipe, make_recipe
from tuning.run import Tuning
from tuning.run_folder import RESULT, drop_checkpoint, read_history

log = logging.getLogger(__name__)

TRIAL, READS, ERROR, STOPPED = "trial.json", "reads.json", "error.json", "stopped.json"
UNFINISHED, UNBEGUN = "not finished", "not begun"
"""What a report says of trials that were interrupted."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a comparison."""

    name: str
    """Of its folder."""
    label: str
    """How tables call its method: the name, with what it is compared in (`momentum radius=0.1`)."""
    recipe: Mapping[str, Any]
    """All settings, as `recipe.yaml` holds them."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Values of compared and of searched settings, by dotted path."""
    new_half: bool = False
    """Tuned on the base classes, to be tested on the new ones as well."""
    shift: tuple[str, ...] = ()
    """Tasks that the artifact is tested on besides its own."""
    search: str | None = None
    """The search on validation whose choice `config` is, if there was one."""

    def write(self, home: Path) -> Path:
        """Make the trial's folder below `home`."""
        folder = home / self.name
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TRIAL, json.dumps(asdict(self), indent=2) + "\n")
        return folder

    @classmethod
    def read(cls, folder: Path) -> Trial:
        """What `write` wrote. Raises ArtifactError where it is not there."""
        try:
            told = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
            return cls(**{**told, "shift": tuple(told["shift"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{folder} holds no trial that can be read here ({error}); the comparison's folder must lie on a "
                "file system that all nodes of the cluster share, and be of this version"
            ) from error


def done(folder: Path) -> bool:
    """Whether nothing is left to do for this trial."""
    return (folder / STOPPED).exists() or ((folder / READS).exists() and (folder / RESULT).exists())


def carry_out(folder: Path) -> Iterator[Step]:
    """Begin a trial, or go on with it, in this process, step by step.

    Raises what the run raises, once `error.json` says it; closing the generator writes a checkpoint.
    """
    trial = Trial.read(folder)
    (folder / ERROR).unlink(missing_ok=True)
    try:
        recipe = make_recipe(trial.recipe)
        if not (folder / RESULT).exists():
            yield from _tuned(recipe, folder)
        write_text(folder / READS, json.dumps(_reads(trial, recipe, folder), indent=2) + "\n")
    except Exception as error:
        write_error(folder, error)
        raise


def _tuned(recipe: Recipe, folder: Path) -> Iterator[Step]:
    task, evaluator = opened(recipe)
    yield from Tuning(recipe, folder, resume=True, task=task, evaluator=evaluator, patience_s=PATIENCE_S)


def write_error(folder: Path, error: BaseException | str) -> str:
    """Note why a trial failed; returns the sentence."""
    if isinstance(error, (KeyholeError, str)):
        sentence = str(error)
    else:
        sentence = f"{type(error).__name__}: {error}"
        log.warning("trial %s failed", folder.name, exc_info=error)
    try:
        write_text(folder / ERROR, json.dumps({"error": sentence}) + "\n")
    except ArtifactError as unwritten:
        log.warning("%s", unwritten)
    return sentence


def write_stopped(folder: Path) -> None:
    """Note that a scheduler ended a trial: it is not to be gone on with."""
    write_text(folder / STOPPED, "{}\n")
    drop_checkpoint(folder)


def looks(folder: Path) -> list[dict[str, Any]]:
    """The records of a trial's history, also of one that was never finished."""
    return read_history(folder)


def _reads(trial: Trial, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What was searched, and further accuracies of the artifact; None where it does not carry over, with the reason."""
    artifact = Artifact.load(folder)
    gives = sorted(opened(recipe)[1].describe()[0].gives)
    found: dict[str, Any] = {"gives": gives, "prompt": _searched(artifact), "new": None, "shift": {}}
    if trial.new_half:
        found["new"] = _read(artifact, recipe, recipe.task, "new")
    for uri in trial.shift:
        found["shift"][uri] = _read(artifact, recipe, uri)
    return found


def _searched(artifact: Artifact) -> dict[str, Any]:
    """What theta stood for: d dimensions, M context tokens, a context for all or one for each class; none of a head."""
    space = artifact.meta["parametrization"]
    if space is None:
        return {}
    context = artifact.arrays.get("context")
    return {
        "dim": len(artifact.arrays["theta"]),
        "context_tokens": None if context is None else context.shape[-2],
        "contexts": None if context is None else 1 if context.ndim == 2 else len(context),
        "subspace": space["subspace"],
    }


def _read(artifact: Artifact, recipe: Recipe, task: str, half: str | None = None) -> dict[str, Any]:
    try:
        told = evaluate(artifact, task_uri=task, half=half, device=recipe.device, test_images=recipe.test_images)
    except ArtifactError as error:
        return {"accuracy": None, "why": str(error)}
    return {name: told[name] for name in ("zero_shot_accuracy", "accuracy", "images")}
