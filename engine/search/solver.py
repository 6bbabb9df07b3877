"""The inner problem of a table search, solved without a query: minimise over the coefficients a of K known directions

    mean_n CE(target_n, logits_n(a)) + 1/2 a^T P a + q^T a.

`Scores` and `Features` say how the logits follow from a; `sums` adds loss, gradient and a K x K Hessian over blocks of
rows, so that a large table is never in memory at once and shards of rows may be added up; `solve` is a damped Newton.

Letters in shapes: as in engine.core, and K columns.
Knows nothing of where columns come from, of theta, or of who asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engine.core import Array

BLOCK = 2**22
"""Most entries of the slopes `(R, C, K)` of one block of rows: 32 MB."""
NEWTON, HALVINGS = 30, 30
TOLERANCE = 1e-10
"""Newton's decrement, in units of the loss, under which a point counts as the minimum."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """logits(a) = base + sum_j a_j columns_j."""

    base: Array
    """`(B, C)`."""
    columns: Array
    """`(K, B, C)`."""

    @property
    def count(self) -> int:
        """K."""
        return len(self.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return self.base.shape

    def blocks(self, a: Array, size: int, *, slopes: bool) -> Iterator[tuple[slice, Array, Array | None]]:
        """Rows, their logits `(R, C)` float64 and, if wanted, the slopes `(R, C, K)`, for `size` rows at a time."""
        for rows in _slices(len(self.base), size):
            columns = self.columns[:, rows].astype(np.float64)
            logits = self.base[rows] + np.tensordot(a, columns, 1)
            yield rows, logits, columns.transpose(1, 2, 0) if slopes else None


@dataclass(frozen=True, kw_only=True)
class Features:
    """logits(a) = scale N(image + sum_j a_j image_columns_j) N(text + sum_j a_j text_columns_j)^T, N normalising rows.

    What does not move has no columns. Exact through the norms: a direction along a feature does nothing.
    """

    text: Array
    """`(C, E)`."""
    image: Array
    """`(B, E)`."""
    text_columns: Array | None = None
    """`(K, C, E)`."""
    image_columns: Array | None = None
    """`(K, B, E)`."""
    scale: float = 1.0

    @property
    def count(self) -> int:
        """K."""
        return next((len(columns) for columns in (self.text_columns, self.image_columns) if columns is not None), 0)

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return len(self.image), len(self.text)

    def blocks(self, a: Array, size: int, *, slopes: bool) -> Iterator[tuple[slice, Array, Array | None]]:
        """As `Scores.blocks`. The text side is moved and differentiated once for all blocks."""
        C, E = self.text.shape
        text, text_slopes = _moved(self.text, self.text_columns, a, slopes)
        flat = None if text_slopes is None else np.ascontiguousarray(text_slopes.transpose(2, 1, 0)).reshape(E, -1)
        del text_slopes
        for rows in _slices(len(self.image), size):
            columns = None if self.image_columns is None else self.image_columns[:, rows]
            image, image_slopes = _moved(self.image[rows], columns, a, slopes)
            logits = self.scale * (image @ text.T)
            if not slopes:
                yield rows, logits, None
                continue
            Z = np.zeros((len(image), C, self.count))
            if flat is not None:
                Z += (image @ flat).reshape(len(image), C, -1)
            if image_slopes is not None:
                Z += (image_slopes @ text.T).transpose(1, 2, 0)
            Z *= self.scale
            yield rows, logits, Z


Linear = Scores | Features


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the rows should be: (1 - weight) the label + weight softmax(anchor)."""

    labels: Array
    """`(B,)` integers."""
    weight: float = 0.0
    anchor: Linear | None = None
    """The scores that are pulled towards, as a table without columns; None: no pull."""

    def blocks(self, size: int, classes: int) -> Iterator[Array]:
        """Target probabilities `(R, C)`, for `size` rows at a time."""
        pulled = self.anchor is not None and self.weight > 0
        anchors = self.anchor.blocks(np.zeros(0), size, slopes=False) if pulled and self.anchor is not None else None
        for rows in _slices(len(self.labels), size):
            labels = self.labels[rows]
            share = np.zeros((len(labels), classes))
            if anchors is not None:
                share += self.weight * softmax(next(anchors)[1])[0]
            share[np.arange(len(labels)), labels] += 1.0 - (self.weight if pulled else 0.0)
            yield share


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over rows: what row shards hand back, to be added in a fixed order."""

    rows: int
    loss: float
    gradient: Array | None = None
    """`(K,)`."""
    hessian: Array | None = None
    """`(K, K)`: Gauss-Newton's, exact for `Scores`, without the curvature of the norms for `Features`; never indefinite."""

    def __add__(self, other: Sums) -> Sums:
        def both(mine: Array | None, theirs: Array | None) -> Array | None:
            return None if mine is None or theirs is None else mine + theirs

        return Sums(
            rows=self.rows + other.rows,
            loss=self.loss + other.loss,
            gradient=both(self.gradient, other.gradient),
            hessian=both(self.hessian, other.hessian),
        )


def sums(table: Linear, target: Target, a: Array, *, slopes: bool = True) -> Sums:
    """Summed cross-entropy to the target at a, its gradient and Hessian in a, over all rows of this table, by blocks.

    The size of a block follows from C and K alone, so that bits do not depend on the machine.
    """
    B, C = table.shape
    K = table.count
    size = max(1, BLOCK // (C * max(1, K)))
    loss, gradient, hessian = 0.0, np.zeros(K), np.zeros((K, K))
    for (_, logits, Z), share in zip(table.blocks(a, size, slopes=slopes), target.blocks(size, C), strict=True):
        p, log_norm = softmax(logits)
        loss += float(log_norm.sum() - (share * logits).sum())
        if Z is None:
            continue
        flat = Z.reshape(-1, K)
        gradient += (p - share).reshape(-1) @ flat
        # sum_n Z_n^T (diag(p_n) - p_n p_n^T) Z_n
        mean = np.matmul(p[:, None, :], Z)[:, 0]
        hessian += (flat * p.reshape(-1, 1)).T @ flat - mean.T @ mean
    return Sums(rows=B, loss=loss, gradient=gradient if slopes else None, hessian=hessian if slopes else None)


def solve(
    table: Linear, target: Target, precision: Array, linear: Array | None = None, start: Array | None = None
) -> Array:
    """argmin_a mean CE(target, logits(a)) + 1/2 a^T precision a + linear^T a, by damped Newton steps.

    Args:
        table: How logits follow from a.
        target: What they should be.
        precision: `(K, K)` positive definite: the trust region, and pulls.
        linear: `(K,)`; None: zero.
        start: `(K,)` first guess; None: zero.

    Returns:
        `(K,)` float64: the best point reached, which is never worse than the first guess.
    """
    q = np.zeros(table.count) if linear is None else linear
    a = np.zeros(table.count) if start is None else np.array(start, np.float64)

    def value(at: Array, found: Sums) -> float:
        return found.loss / found.rows + float(0.5 * at @ precision @ at + q @ at)

    for _ in range(NEWTON):
        here = sums(table, target, a)
        assert here.gradient is not None and here.hessian is not None
        now = value(a, here)
        gradient = here.gradient / here.rows + precision @ a + q
        step = np.linalg.solve(here.hessian / here.rows + precision, gradient)
        slope = float(gradient @ step)
        if not slope > TOLERANCE:
            break
        length = 1.0
        for _ in range(HALVINGS):
            trial = a - length * step
            # Armijo's rule; a step that the tolerance could not tell from none ends the search.
            if value(trial, sums(table, target, trial, slopes=False)) <= now - 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        a = trial
    return a


def softmax(logits: Array) -> tuple[Array, Array]:
    """Probabilities `(R, C)` and the logarithm of the sum of exponentials `(R,)`."""
    top = logits.max(-1, keepdims=True)
    shares = np.exp(logits - top)
    total = shares.sum(-1, keepdims=True)
    return shares / total, (top + np.log(total))[:, 0]


def frozen(table: Linear) -> Linear:
    """The same table without its columns: what an anchor is."""
    if isinstance(table, Scores):
        return Scores(base=table.base, columns=table.columns[:0])
    return replace(table, text_columns=None, image_columns=None)


def _moved(base: Array, columns: Array | None, a: Array, slopes: bool) -> tuple[Array, Array | None]:
    """N(base + a columns) and its derivative in a `(K, ..., E)`; a base without columns is normalised already."""
    if columns is None:
        return base.astype(np.float64), None
    raw = base + np.tensordot(a, columns, 1)
    norm = np.linalg.norm(raw, axis=-1, keepdims=True)
    unit = raw / norm
    if not slopes:
        return unit, None
    # d(v / |v|) = (I - u u^T) dv / |v|
    along = np.einsum("kce,ce->kc", columns, unit)
    return unit, (columns - along[..., None] * unit) / norm


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
