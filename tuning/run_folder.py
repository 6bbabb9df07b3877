"""A run's folder: what is written when, and what a resumed run may trust."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.artifact import Artifact
from engine.checkpoint import Checkpoint, load_state
from engine.errors import ArtifactError, RecipeError
from engine.files import UnwritableError, append_lines, unwritable, write_text
from engine.tuning_loop import Step
from tuning.lease import Lease
from tuning.origin import check_origin
from tuning.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)

RECIPE, HISTORY, RESULT, CHECKPOINT = "recipe.yaml", "history.jsonl", "result.json", "checkpoint/state.safetensors"
NUMBERS = (
    *("evaluations", "pairs", "test_pairs", "sequences", "image_encodes"),
    *("zero_shot_accuracy", "accuracy", "seconds"),
)
"""The numbers of a result that are printed."""


class RunFolder:
    """The folder of one run.

    Args:
        path: The folder; made where it is missing.
        resume: Whether a run in it may be resumed.
        every_s: Least seconds between checkpoints.
        patience_s: Seconds to wait for another process that holds it.
    """

    def __init__(self, path: Path, *, resume: bool, every_s: float, patience_s: float = 0.0) -> None:
        self.path, self.resume = path, resume
        self._lease = Lease(path, patience_s=patience_s)
        self._checkpoint = Checkpoint(path / CHECKPOINT, every_s)
        self._latest: Step | None = None
        self._lines: list[str] = []
        self._begun: str | None = None
        """The origin in the checkpoint that is resumed."""
        self._origin: Mapping[str, Any] = {}

    def _refuse(self) -> None:
        finished, begun = (self.path / RESULT).exists(), (self.path / CHECKPOINT).exists()
        if finished or (begun and not self.resume):
            advice = "it is finished" if finished else "resume it, or name another --out"
            raise ArtifactError(f"{self.path} already holds a run; {advice}")

    @contextmanager
    def claimed(self) -> Iterator[dict[str, Any] | None]:
        """Hold the folder for this process alone; gives the state to resume from, None for a new run.

        Raises ArtifactError where another process holds it, it holds a run that is damaged or may not be resumed, or it
        cannot be written.
        """
        with self._lease:
            self._refuse()
            yield self._state()

    def settle(self, recipe: Recipe, origin: Mapping[str, Any], *, final: bool) -> None:
        """Write the resolved recipe after comparing it with the checkpoint.

        Args:
            recipe: As far as it is resolved.
            origin: What the run is started or resumed with (`origin_of`).
            final: Whether the recipe is fully resolved.

        Raises ArtifactError where the run was begun with something else.
        """
        import yaml

        if self._begun is not None:
            check_origin(self._begun, origin, self.path / CHECKPOINT, final=final)
        self._origin = origin
        if self._begun is None or final:
            write_text(self.path / RECIPE, yaml.safe_dump(recipe.as_dict(), sort_keys=False))

    def note(self, step: Step) -> None:
        """Hold a step for the next checkpoint."""
        self._latest = step
        self._lines.append(json.dumps(step.record()))

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._checkpoint.due

    def checkpoint(self) -> None:
        """Write what a resumed run needs: first the history, then the state that relies on it.

        Raises ArtifactError where the disk is full or read-only, or another process has taken the folder over.
        """
        state = None if self._latest is None else self._latest.state()
        if state is None:
            return
        self._lease.confirm()
        with self._resumable():
            append_lines(self.path / HISTORY, self._lines)
            self._lines.clear()
            self._checkpoint.write({"origin": json.dumps(self._origin), "run": state})
        self._latest = None

    def finish(self, artifact: Artifact, result: Mapping[str, Any]) -> None:
        """Write the artifact, then the result, which marks the run as finished, and remove the checkpoint.

        Raises ArtifactError where the disk is full or read-only, or another process has taken the folder over.
        """
        self._lease.confirm()
        with self._resumable():
            try:
                artifact.save(self.path / "artifact")
            except OSError as error:
                shutil.rmtree(self.path / "artifact.tmp", ignore_errors=True)
                raise unwritable(self.path / "artifact", error) from error
            write_text(self.path / RESULT, json.dumps(result, indent=2) + "\n")
        drop_checkpoint(self.path)

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """Add to an error how to resume after the disk was full."""
        try:
            yield
        except UnwritableError as error:
            raise UnwritableError(f"{error}, then go on with: keyhole tune --resume {self.path}") from error

    def _state(self) -> dict[str, Any] | None:
        """The checkpoint's state with the history cut to it; None, and no history, where there is nothing to resume."""
        path, history = self.path / CHECKPOINT, self.path / HISTORY
        if not self.resume or not path.exists():
            try:
                history.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(history, error) from error
            return None
        state = load_state(path)
        run, self._begun = state.get("run"), state.get("origin")
        step = run.get("step") if isinstance(run, dict) else None
        if not isinstance(run, dict) or not isinstance(self._begun, str) or type(step) is not int or step < 1:
            raise ArtifactError(f"checkpoint {path} does not hold the state of a run; remove it to start anew")
        # Lines past the checkpoint, and half lines, are of steps that a killed process began: they are run again.
        lines = [line for line in read_history(self.path) if line["step"] < step]
        if len(lines) < step:
            log.warning(
                "%s has %d of the %d lines up to the checkpoint: the others are lost, the run goes on all the same",
                history, len(lines), step,
            )  # fmt: skip
        write_text(history, "".join(json.dumps(line) + "\n" for line in lines))
        log.info("resuming %s at step %d", self.path, step)
        return run


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's history, without an incomplete last line; none where there is no file.

    Raises ArtifactError where the file holds something else.
    """
    path = folder / HISTORY
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); restore it or remove it") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int and record["step"] >= len(found):
            found.append(record)
        elif number < len(lines):
            raise ArtifactError(
                f"line {number} of {path} is not the record of a step; restore the file, or remove it: a run goes on "
                "without it"
            )
    return found


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises ArtifactError where the file is missing, empty or damaged."""
    path = folder / RESULT
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError(f"a {type(result).__name__}")
        words = [result[name] for name in ("task", "box", "method")]
        numbers = [result[name] for name in (*NUMBERS, "shots", "seed")]
        if not all(isinstance(word, str) for word in words) or not all(_is_number(number) for number in numbers):
            raise ValueError("a value of the wrong type")
        return result
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not the result of a run ({error or type(error).__name__}); restore it, or remove it and run "
            f"keyhole tune --resume {folder}"
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def resumed_recipe(folder: Path) -> dict[str, Any]:
    """The settings of a run that is to be resumed.

    Raises:
        ArtifactError: The folder holds no run.
        RecipeError: Its recipe cannot be read.
    """
    if not (folder / RECIPE).is_file():
        if (folder / "compare.yaml").exists():
            raise ArtifactError(f"{folder} holds a comparison; go on with: keyhole compare --resume {folder}")
        what = "holds no run" if folder.is_dir() else "is no folder"
        raise ArtifactError(
            f"{folder} {what}: name one that keyhole tune wrote (it has a {RECIPE}), or begin with --out"
        )
    try:
        return load_recipe(folder / RECIPE)
    except RecipeError as error:
        raise RecipeError(f"{error}; it was written by keyhole tune: restore it, or begin anew with --out") from error


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a run."""
    shutil.rmtree((folder / CHECKPOINT).parent, ignore_errors=True)


def default_path(recipe: Recipe) -> Path:
    """A run folder that does not exist yet, named after the task, the method and the seed."""
    task = recipe.task.split(":")[-1].split("/")[-1].split("?")[0]
    words = (task, recipe.method.replace(":", "-"), f"s{recipe.seed}")
    stem = Path("runs") / "-".join(word for word in words if word)
    number, path = 2, stem
    while (path / RECIPE).exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path
