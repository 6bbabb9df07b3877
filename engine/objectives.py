"""Losses: a box's answer and the labels -> one number per candidate, lower is better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from engine.errors import RecipeError, RefusedError, nearest
from engine.parsing import resolve
from engine.protocols import Array, Objective, Outputs

LEAST = 1e-6
"""Least probability mass outside of the top k, whose rounded probabilities may sum to 1."""


def cross_entropy(outputs: Outputs, labels: Array) -> Array:
    """Mean over the rows of -log softmax(logits)[label], from scores or features.

    Computed in float64, one candidate's table at a time.

    >>> table = np.log(np.array([[[0.5, 0.5], [0.25, 0.75]]], np.float32))
    >>> np.round(cross_entropy(Outputs(scores=table), np.array([0, 1])), 4).tolist()
    [0.4904]

    Args:
        outputs: For P candidates on B rows, with scores or features.
        labels: `(B,)` integers.

    Returns:
        `(P,)` float64, nats; NaN for a candidate whose answer is not finite.

    Raises RefusedError where the box gives only labels or the top k.
    """
    losses = []
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for table in _tables(outputs):
            logits = _for(labels, table.astype(np.float64))
            chosen = np.take_along_axis(log_softmax(logits, axis=-1), labels[:, None], -1)[:, 0]
            losses.append(0.0 - np.mean(chosen))  # a perfect fit is 0.0, not -0.0
    return np.array([loss if np.isfinite(loss) else np.nan for loss in losses], np.float64)


def zero_one(outputs: Outputs, labels: Array) -> Array:
    """1 - accuracy, for boxes that give nothing but labels.

    Returns:
        `(P,)` float64 in [0, 1]; NaN for a candidate whose scores or features are not finite.
    """
    if outputs.labels is not None or outputs.topk is not None:
        return (_for(labels, outputs.predictions(), axis=1) != labels).mean(-1)
    losses = []
    for table in _tables(outputs):
        wrong = _for(labels, table).argmax(-1) != labels
        losses.append(wrong.mean() if np.isfinite(table).all() else np.nan)
    return np.array(losses, np.float64)


def top_k_cross_entropy(outputs: Outputs, labels: Array) -> Array:
    """Cross-entropy from the k best classes alone: the remaining mass is spread evenly over the other classes.

    A label outside of the k has probability min((1 - sum p) / (C - k), p_k), where C is one more than the largest label
    (a few-shot set has every class). The loss is exact where the label is among the k, and jumps where it enters them:
    for rank-based methods, and for steps that average many rows. With scores or features it is `cross_entropy`.

    >>> classes, told = np.array([[[0, 1]]]), np.log(np.array([[[0.6, 0.2]]], np.float32))
    >>> np.round(np.exp(-top_k_cross_entropy(Outputs(topk=(classes, told)), np.array([3]))), 3).tolist()
    [0.1]

    Returns:
        `(P,)` float64, nats; NaN for a candidate whose answer is not finite.

    Raises RefusedError where the box gives only labels.
    """
    if outputs.topk is None:
        return cross_entropy(outputs, labels)
    classes, told = outputs.topk
    own = _for(labels, classes, axis=1) == labels[:, None]
    told = told.astype(np.float64)
    rest = max(int(labels.max()) + 1 - classes.shape[-1], 1)
    left = np.maximum(1 - np.exp(told).sum(-1), LEAST) / rest
    outside = np.minimum(np.log(left), told[..., -1])
    losses = -np.where(own.any(-1), np.where(own, told, 0.0).sum(-1), outside).mean(-1)
    return np.where(np.isfinite(losses), losses, np.nan)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sum of weighted terms, itself an objective."""

    terms: tuple[tuple[float, Objective], ...]
    """Pairs of weight and objective; at least one."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("Weighted needs at least one (weight, term)")

    def __call__(self, outputs: Outputs, labels: Array) -> Array:
        """`(P,)` float64."""
        return np.asarray([weight * term(outputs, labels) for weight, term in self.terms]).sum(0)


PLAIN = ("auto", "cross-entropy")
"""Those that are plain cross-entropy wherever scores or features are given."""
OBJECTIVES: dict[str, Objective] = {
    "cross-entropy": cross_entropy,
    "top-k-cross-entropy": top_k_cross_entropy,
    "zero-one": zero_one,
}
"""name -> loss."""


def make_objective(name: str) -> Objective:
    """The loss of this name: one of `OBJECTIVES`, or `package.module:function`. Raises RecipeError where none is."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" not in name:
        raise RecipeError(
            f"objective {name!r}{nearest(name, OBJECTIVES)}; it is one of {', '.join(OBJECTIVES)}, "
            "or package.module:function"
        )
    return resolve(name, f"objective {name!r}")


def _tables(outputs: Outputs) -> Iterator[Array]:
    """The logits `(B, C)` float32 of each candidate in turn: as `Outputs.logits` to the bit, with less memory."""
    if outputs.scores is not None:
        yield from outputs.scores
        return
    text, image = outputs.text, outputs.image
    if text is None or image is None:
        raise RefusedError("this box gives neither scores nor features; use the objective zero-one")
    for p in range(max(len(text), len(image))):
        yield image[p % len(image)] @ text[p % len(text)].T * np.float32(outputs.scale)


def _for(labels: Array, answers: Array, axis: int = 0) -> Array:
    """`answers`, checked to have one row per label."""
    if labels.ndim != 1 or answers.shape[axis] != len(labels):
        raise ValueError(f"labels of shape {labels.shape} for answers of {answers.shape}: one label per row is wanted")
    return answers
