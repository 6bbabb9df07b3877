"""Tasks made harder on purpose: `?imbalance=20&label_noise=0.2` on any task URI.

Only the few-shot training split is degraded. Validation and test stay as they are, so that what is measured is what
the search does with bad rows.
Knows nothing of boxes and methods.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.errors import RecipeError
from engine.protocols import Array, Task
from engine.random_streams import Purpose, rng

TASK_OPTIONS = ("imbalance", "label_noise")
BOX_OPTIONS = ("noise", "round", "topk", "jpeg")


def split_degradations(uri: str) -> tuple[str, dict[str, float]]:
    """A task URI without these options, and their values.

    >>> split_degradations("mini:digits?label_noise=0.2&x=1")
    ('mini:digits?x=1', {'label_noise': 0.2})

    Raises RecipeError for a value out of range.
    """
    plain, _, query = uri.partition("?")
    kept, found = [], {}
    for part in query.split("&") if query else ():
        name, _, text = part.partition("=")
        if name not in TASK_OPTIONS:
            kept.append(part)
            continue
        try:
            found[name] = float(text)
        except ValueError as error:
            raise RecipeError(f"task {uri!r}: {name}={text!r} must be a number") from error
    if not found:
        return uri, found
    if not found.get("imbalance", 1) >= 1:
        raise RecipeError(f"task {uri!r}: imbalance={found['imbalance']:g} must be at least 1: how many times more "
                          "images the largest class has than the smallest")  # fmt: skip
    if not 0 <= found.get("label_noise", 0) < 1:
        raise RecipeError(f"task {uri!r}: label_noise={found['label_noise']:g} must be a fraction of 1, below 1")
    return plain + ("?" + "&".join(kept) if kept else ""), found


def without_degradations(uri: str) -> str:
    """A task or box URI without the options that degrade it.

    >>> without_degradations("mini:resnet?jpeg=60&gives=scores")
    'mini:resnet?gives=scores'
    """
    plain, _, query = uri.partition("?")
    kept = [p for p in query.split("&") if p and p.partition("=")[0] not in (*TASK_OPTIONS, *BOX_OPTIONS)]
    return plain + ("?" + "&".join(kept) if kept else "")


def degraded(task: Task, seed: int) -> Task:
    """The task with its training split degraded as its URI says; drawn by `seed`."""
    _, options = split_degradations(task.uri)
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
    """Labels of which this fraction, rounded, says another class, all others equally likely."""
    noise = rng(seed, 1, Purpose.DEGRADE)
    labels = task.train.labels.copy()
    rows = noise.permutation(len(labels))[: round(fraction * len(labels))]
    labels[rows] = (labels[rows] + noise.integers(1, len(task.classes), len(rows))) % len(task.classes)
    return labels
