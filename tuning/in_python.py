"""`keyhole.tune`: a run from Python objects or URIs, which ends in a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engine.classifier import Classifier
from engine.protocols import BlackBox
from engine.task import Task
from tuning.recipe import load_recipe, make_recipe
from tuning.resolve import method_of
from tuning.run import Tuning, evaluator_of, problem_of, task_of
from tuning.run_folder import RESULT


def tuned(
    box: str | BlackBox | None,
    task: str | Task | None,
    out: str | Path | None,
    recipe: str | Path | Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
) -> Classifier:
    """As `keyhole.tune`."""
    base = load_recipe(recipe) if isinstance(recipe, (str, Path)) else dict(recipe or {})
    made = make_recipe({**base, **_of_task(task), **_of_box(box), **settings})
    evaluator = None
    given = None if isinstance(task, str | None) else task
    if not isinstance(box, str | None):
        given = given or task_of(made)
        evaluator = evaluator_of(made, replace(problem_of(made, given, method_of(made)), box=box))
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(TemporaryDirectory())) / "run"
        if not (resume and (folder / RESULT).exists()):
            for _ in Tuning(made, folder, resume=resume, task=given, evaluator=evaluator):
                pass
        found = Classifier.load(folder, made.device)
    return found if isinstance(box, str | None) else found.bind(box)


def _of_task(task: str | Task | None) -> dict[str, Any]:
    """The settings that a task brings."""
    if task is None:
        return {}
    if isinstance(task, str):
        return {"task": task}
    return {"task": task.uri, "shots": task.shots, "seed": task.seed, "data_seed": task.seed, "half": task.half}


def _of_box(box: str | BlackBox | None) -> dict[str, Any]:
    """The setting that a box brings."""
    if box is None:
        return {}
    return {"box": box if isinstance(box, str) else box.spec.uri}
