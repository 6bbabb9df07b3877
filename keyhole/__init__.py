"""The Python API.

import keyhole
result = keyhole.tune("runs/digits", task="mini:digits", budget=500)
labels, probabilities = keyhole.load("runs/digits").predict(["a.png", "b.png"])

Whatever is heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.classifier import Classifier
    from engine.protocols import BlackBox, Split, Task
    from tuning.evaluate import Evaluation

__all__ = ["Classifier", "evaluate", "load", "load_task", "open_box", "tune"]

_LAZY = {"Classifier": "engine.classifier"}
"""Name -> module that it is imported from when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def tune(out: str | Path, *, recipe: str | Path | Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Tune a prompt; returns what `result.json` holds.

    Args:
        out: the run folder.
        recipe: a YAML file or a mapping of settings.
        **settings: further settings, over the recipe's (`method={"name": "momentum", "radius": 0.1}`).

    Raises KeyholeError for anything that a user can mend.
    """
    from tuning.recipe import load_recipe, make_recipe
    from tuning.run import Tuning

    base = load_recipe(recipe) if isinstance(recipe, (str, Path)) else dict(recipe or {})
    run = Tuning(make_recipe({**base, **settings}), out)
    for _ in run:
        pass
    return run.result


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
        classifier: What `load` gives, or bound to another box (`Classifier.bind`).
        split: Images and labels, which count in the order of `classifier.classes`.

    Raises:
        TaskError: The split is empty or has labels beyond the classes; an image cannot be read.
        ArtifactError: The artifact does not fit its box.
    """
    from tuning.evaluate import measure

    return measure(classifier, split)


def open_box(uri: str, *, classes: Sequence[str], template: str = "a photo of a {}.", device: str = "cpu") -> BlackBox:
    """A frozen model behind its keyhole (`keyhole list boxes`)."""
    from engine.boxes import open_box

    return open_box(uri, classes=classes, template=template, device=device)


def load_task(uri: str, *, shots: int = 16, seed: int = 1) -> Task:
    """A task with its few-shot sample (`keyhole list tasks`)."""
    from tuning.data.load_task import load_task

    return load_task(uri, shots=shots, seed=seed)
