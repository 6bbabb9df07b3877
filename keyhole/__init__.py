"""The Python API.

>>> import keyhole as kh
>>> task = kh.load_task("mini:digits")
>>> classifier = kh.tune("mini:resnet", task, method="sketch", budget=200)
>>> labels, probabilities = classifier.predict(["a.png", "b.png"])

Whatever is heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.classifier import Classifier
    from engine.protocols import BlackBox, Method
    from engine.session import RunSettings, Session
    from engine.task import Split, Task
    from tuning.evaluate import Evaluation

__all__ = [
    "Classifier",
    "RunSettings",
    "Session",
    "evaluate",
    "load",
    "load_box",
    "load_task",
    "method",
    "tune",
]

_LAZY = {"Classifier": "engine.classifier", "Session": "engine.session", "RunSettings": "engine.session"}
"""Name -> module that it is imported from when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def load_task(uri: str, *, shots: int = 16, seed: int = 1) -> Task:
    """A task with its few-shot sample (`keyhole list tasks`).

    Args:
        uri: `mini:NAME`, `folder:PATH`, `coop:PATH`, `hf:NAME` or `package.module:function`.
        shots: Training images a class, at least 1.
        seed: Which sample, 0 or more.

    Raises:
        RecipeError: The URI or a number cannot be.
        TaskError: The data cannot make this task; the class or the file is named.
    """
    from tuning.data.load_task import load_task

    return load_task(uri, shots=shots, seed=seed)


def load_box(uri: str, task: Task, *, device: str = "cpu") -> BlackBox:
    """A frozen model behind its keyhole, opened for a task's classes and template (`keyhole list boxes`).

    Args:
        uri: `mini:NAME`, `open_clip:MODEL,TAG`, `hf-hub:ORG/REPO`, `local-dir:PATH`, with options as a query.
        task: What it is to answer for.
        device: Where it computes, in torch's words.

    Raises:
        RecipeError: The URI cannot be read.
        BoxError: The model cannot be had.
    """
    from engine.boxes import open_box

    return open_box(uri, classes=task.classes, template=task.template, device=device)


def method(name: str, **options: Any) -> Method:
    """A method with its own settings (`keyhole list methods`): `method("momentum", k=2)`.

    Raises:
        RecipeError: The name or an option is unknown, or a value is out of range.
    """
    from engine import search

    return search.make(name, options)


def tune(
    box: str | BlackBox | None = None,
    task: str | Task | None = None,
    *,
    out: str | Path | None = None,
    recipe: str | Path | Mapping[str, Any] | None = None,
    resume: bool = False,
    **settings: Any,
) -> Classifier:
    """Tune a prompt; what it arrives at is a classifier, with `metrics` and `ledger`.

    Args:
        box: A URI, or an open box for the task's classes, whatever keeps `engine.protocols.BlackBox`. Ray workers and
            `resume` need a URI. None: the recipe's.
        task: A URI, or what `load_task` gives. None: the recipe's.
        out: Folder that keeps the run; None: nothing is left on disk.
        recipe: A YAML file or a mapping of settings.
        resume: Go on with the run that `out` holds; of a finished one, this is what it arrived at.
        **settings: Further settings, over the recipe's (`method={"name": "momentum", "radius": 0.1}, budget=500`).

    Raises:
        KeyholeError: Anything that a user can mend, most of it before the first query.
    """
    from tuning.in_python import tuned

    return tuned(box, task, out, recipe, settings, resume=resume)


def load(folder: str | Path, device: str = "cpu") -> Classifier:
    """The classifier that a run left, or that `Classifier.save` wrote.

    Args:
        folder: A run folder or an artifact folder.
        device: Where its box computes, in torch's words: also another than it was tuned on.

    Raises:
        ArtifactError: There is none, it is damaged, or of another version.
    """
    from engine.classifier import Classifier

    return Classifier.load(folder, device)


def evaluate(classifier: Classifier, split: Split) -> Evaluation:
    """Accuracy on images whose labels are known: `evaluate(load("runs/digits"), task.test).accuracy`.

    Args:
        classifier: What `load` or `tune` gives, or bound to another box (`Classifier.bind`).
        split: Images and labels, which count in the order of `classifier.classes`.

    Raises:
        TaskError: The split is empty or has labels beyond the classes; an image cannot be read.
        ArtifactError: The artifact does not fit its box.
    """
    from tuning.evaluate import measure

    return measure(classifier, split)
