"""A classifier mixed from several templates: convex weights over their cached text features, found without a query.

The logits  scale * image . sum_t w_t text_t  are linear in the weights, so cross-entropy over the simplex is a convex
problem. Weights start equal (the ensemble of templates) and follow exponentiated gradients (Kivinen and Warmuth 1997).
Validation chooses where they stop, the ensemble and the task's own template included.

Letters: T templates, C classes, E joint width, n rows. Knows nothing of words and of boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import log_softmax

from engine.heads import Examples, Head, by_val_loss, validated
from engine.protocols import Array

STEPS = 300
LOOK_EVERY = 5
GROWTH = 1.5
"""Factor by which the step grows after the loss fell; after a rise it is halved."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureHead(Head):
    """Classifier rows that are a weighted mean of several templates' text features."""

    kind: ClassVar[str] = "templates"
    shapes: ClassVar[Mapping[str, str]] = {"text": "CE", "weights": "T"}

    text: Array
    """`(C, E)` float32 classifier rows; not of unit length, unless it is the plain ensemble."""
    weights: Array
    """`(T,)` float32 on the simplex, in the order of the templates."""
    scale: float

    def scores(self, features: Array) -> Array:
        """`(n, E)` image features -> `(n, C)` float32 logits."""
        return (np.float32(self.scale) * (features @ self.text.T)).astype(np.float32)


def ensemble(text: Array, val: Examples, scale: float) -> MixtureHead:
    """The mean of T templates' features `(T, C, E)`, normalised again (Radford et al. 2021, section 3.1.4)."""
    mean = text.mean(0, dtype=np.float64)
    rows = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return _head(rows, np.full(len(text), 1 / len(text)), val, scale)


def fit_mixture(text: Array, train: Examples, val: Examples, scale: float) -> MixtureHead:
    """Convex weights over T templates.

    >>> text = np.eye(2, dtype=np.float32)[[[0, 1], [1, 0]]]  # the second template names the classes wrongly
    >>> images = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> fit_mixture(text, images, images, 10.0).weights.round(2).tolist()
    [1.0, 0.0]

    Args:
        text: `(T, C, E)` features, the task's own template first.
        train: Image features `(n, E)` and labels `(n,)`.
        val: The same for the validation rows.
        scale: Factor from a cosine to a logit.
    """
    T = len(text)
    features, labels = train[0].astype(np.float64), train[1]
    flat = text.reshape(T, -1).astype(np.float64)
    single = np.eye(T)[0]
    tried = [ensemble(text, val, scale), _head(text[0], single, val, scale)]
    weights, size = np.full(T, 1 / T), 1.0
    loss, slope = _slope(weights, flat, features, labels, scale)
    for step in range(1, STEPS + 1):
        moved = weights * np.exp(-size * (slope - slope.min()))
        moved /= moved.sum()
        new_loss, new_slope = _slope(moved, flat, features, labels, scale)
        if new_loss > loss:
            size /= 2
            continue
        weights, loss, slope, size = moved, new_loss, new_slope, size * GROWTH
        if step % LOOK_EVERY == 0:
            rows = (weights @ flat).reshape(text.shape[1:])
            tried.append(_head(rows, weights, val, scale))
    tried.append(_head((weights @ flat).reshape(text.shape[1:]), weights, val, scale))
    return min(tried, key=by_val_loss)


def _slope(weights: Array, flat: Array, features: Array, labels: Array, scale: float) -> tuple[float, Array]:
    """Cross-entropy at these weights and its gradient `(T,)`."""
    rows = (weights @ flat).reshape(-1, features.shape[1])
    log_p = log_softmax(scale * (features @ rows.T), axis=-1)
    n = np.arange(len(labels))
    p = np.exp(log_p)
    p[n, labels] -= 1
    return -float(log_p[n, labels].mean()), flat @ (scale / len(labels) * (p.T @ features)).ravel()


def _head(rows: Array, weights: Array, val: Examples, scale: float) -> MixtureHead:
    made = MixtureHead(text=rows.astype(np.float32), weights=weights.astype(np.float32), scale=scale)
    return validated(made, val)
