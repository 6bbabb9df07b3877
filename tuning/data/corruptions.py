"""Tasks made harder on purpose: `?imbalance=20&label_noise=0.2` on any task URI.

Only the few-shot training split is degraded, not validation or test: what is measured is how a search copes with bad
training rows.
Knows nothing of boxes and methods.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.boxes.degraded import OPTIONS as BOX_OPTIONS
from engine.errors import RecipeError
from engine.parsing import parse_uri, without_options
from engine.protocols import Array
from engine.random_streams import Purpose, rng
from engine.task import Task

TASK_OPTIONS = ("imbalance", "label_noise")


def degradations(uri: str) -> dict[str, float]:
    """The values of a task URI's `TASK_OPTIONS`.

    >>> degradations("mini:digits?label_noise=0.2&x=1")
    {'label_noise': 0.2}

    Raises RecipeError for a value out of range.
    """
    found = {}
    for name, text in parse_uri(uri, "task")[2].items():
        if name not in TASK_OPTIONS:
            continue
        try:
            found[name] = float(text)
        except ValueError as error:
            raise RecipeError(f"task {uri!r}: {name}={text!r} must be a number") from error
    if not found.get("imbalance", 1) >= 1:
        raise RecipeError(f"task {uri!r}: imbalance={found['imbalance']:g} must be at least 1: how many times more "
                          "images the largest class has than the smallest")  # fmt: skip
    if not 0 <= found.get("label_noise", 0) < 1:
        raise RecipeError(f"task {uri!r}: label_noise={found['label_noise']:g} must be a fraction of 1, below 1")
    return found


def without_degradations(uri: str) -> str:
    """A task or box URI without the options that degrade it.

    >>> without_degradations("mini:resnet?jpeg=60&gives=scores")
    'mini:resnet?gives=scores'
    """
    return without_options(uri, (*TASK_OPTIONS, *BOX_OPTIONS))


def degraded(task: Task, seed: int) -> Task:
    """The task with its training split degraded as its URI says, drawn by `seed`.

    Raises RecipeError for a value out of range.
    """
    options = degradations(task.uri)
    if "imbalance" in options:
        task = replace(task, train=task.train.subset(_long_tail(task, options["imbalance"], seed)))
    if options.get("label_noise"):
        task = replace(task, train=replace(task.train, labels=_flipped(task, options["label_noise"], seed)))
    return task


def _long_tail(task: Task, ratio: float, seed: int) -> Array:
    """Rows kept: class sizes fall geometrically to 1 / ratio (Cui et al. 2019, arXiv 1901.05555), in a drawn order."""
    classes = len(task.classes)
    order = rng(seed, 0, Purpose.DEGRADE).permutation(classes)
    kept = []
    for place, label in enumerate(order):
        rows = np.flatnonzero(task.train.labels == label)
        kept.append(rows[: max(1, round(len(rows) * ratio ** (-place / max(1, classes - 1))))])
    return np.sort(np.concatenate(kept))


def _flipped(task: Task, fraction: float, seed: int) -> Array:
    """Labels `(n,)` with this fraction of them, rounded, replaced by another class, drawn uniformly."""
    noise = rng(seed, 1, Purpose.DEGRADE)
    labels = task.train.labels.copy()
    rows = noise.permutation(len(labels))[: round(fraction * len(labels))]
    labels[rows] = (labels[rows] + noise.integers(1, len(task.classes), len(rows))) % len(task.classes)
    return labels
