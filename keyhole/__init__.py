"""The Python API.

import keyhole
result = keyhole.tune("runs/digits", task="mini:digits", budget=500)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.artifact import Artifact
    from engine.core import BlackBox, Task


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


def load(folder: str | Path) -> Artifact:
    """The artifact of a run folder."""
    from engine.artifact import Artifact

    return Artifact.load(folder)


def open_box(uri: str, *, classes: Sequence[str], template: str = "a photo of a {}.", device: str = "cpu") -> BlackBox:
    """A frozen model behind its keyhole (`keyhole list boxes`)."""
    from engine.boxes import open_box

    return open_box(uri, classes=classes, template=template, device=device)


def load_task(uri: str, *, shots: int = 16, seed: int = 1) -> Task:
    """A task with its few-shot sample (`keyhole list tasks`)."""
    from tuning.data.load_task import load_task

    return load_task(uri, shots=shots, seed=seed)
