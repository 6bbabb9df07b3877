"""A run's folder: what is written there when, and what of it a run that is gone on with may trust.

Knows nothing of boxes, of methods and of what a step is about.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.artifact import Artifact, load_state, save_state, write_text
from engine.errors import ArtifactError
from engine.loop import Step
from tuning.recipe import Recipe

log = logging.getLogger(__name__)

RECIPE, HISTORY, RESULT, CHECKPOINT = "recipe.yaml", "history.jsonl", "result.json", "checkpoint/state.npz"


class RunFolder:
    """The folder of one run, with the recipe in it from the beginning.

    Args:
        path: where it is, or will be.
        recipe: every setting.
        resume: whether a run that was begun there may be gone on with.

    Raises ArtifactError where it holds a run that may not, or cannot be written.
    """

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool) -> None:
        import yaml

        self.path, self.resume = path, resume
        self._latest: Step | None = None
        self._lines: list[str] = []
        finished, begun = (path / RESULT).exists(), (path / CHECKPOINT).exists()
        if finished or (begun and not resume):
            advice = "it is finished" if finished else "resume it, or name another --out"
            raise ArtifactError(f"{path} already holds a run; {advice}")
        try:
            (path / "checkpoint").mkdir(parents=True, exist_ok=True)
            write_text(path / RECIPE, yaml.safe_dump(recipe.as_dict(), sort_keys=False))
        except OSError as error:
            raise ArtifactError(
                f"the run folder {path} cannot be written ({error.strerror}); name another with --out"
            ) from error

    def note(self, step: Step) -> None:
        """Keep a step for the next checkpoint."""
        self._latest = step
        self._lines.append(json.dumps(step.record()))

    def checkpoint(self) -> None:
        """Write what a resumed run needs: first the history, then the state that refers to it."""
        if self._latest is None:
            return
        with open(self.path / HISTORY, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in self._lines)
        self._lines.clear()
        save_state(self.path / CHECKPOINT, self._latest.state())

    def state(self) -> dict[str, Any] | None:
        """The checkpoint's state with the history cut to it; None, and no history, where there is nothing to resume."""
        history = self.path / HISTORY
        if not self.resume or not (self.path / CHECKPOINT).exists():
            history.unlink(missing_ok=True)
            return None
        state = load_state(self.path / CHECKPOINT)
        # Lines past the checkpoint, or half a line, are what a killed process had begun: they are made again.
        lines = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
        if len(lines) < state["step"]:
            raise ArtifactError(f"{history} has {len(lines)} lines, the checkpoint is at step {state['step']}")
        write_text(history, "".join(line + "\n" for line in lines[: state["step"]]))
        log.info("resuming %s at step %d", self.path, state["step"])
        return state

    def finish(self, artifact: Artifact, result: Mapping[str, Any]) -> None:
        """Write the artifact, and last the result, which says that the run is finished."""
        artifact.save(self.path / "artifact")
        write_text(self.path / RESULT, json.dumps(result, indent=2) + "\n")


def default_path(recipe: Recipe) -> Path:
    """A run folder that does not exist yet, named after the task, the method and the seed."""
    words = [
        recipe.task.split(":")[-1].split("/")[-1].split("?")[0],
        recipe.method.replace(":", "-"),
        f"s{recipe.seed}",
    ]
    stem = Path("runs") / "-".join(word for word in words if word)
    number, path = 2, stem
    while (path / RECIPE).exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path
