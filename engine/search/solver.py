"""The inner problem of a table search, solved without a query: minimise over the coefficients a of K known columns

    mean_n CE(target_n, logits_n(a)) + 1/2 a^T P a + q^T a.

`Scores` and `Features` say how the logits follow from a; `sums` adds loss, gradient and a K x K Hessian over blocks of
rows, so that the columns of a large table are never in memory for all rows at once, and so that shards of rows may be
summed apart and added up; `solve` is a damped Newton on these sums.

Letters in shapes: as in engine.core, and K columns, n remembered tables that they are mixed from, R rows of a block.
Knows nothing of where columns come from, of theta, or of who asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engine.core import Array

BLOCK = 2**22
"""Most entries of the slopes `(R, C, K)` of one block of rows: 32 MB."""
CURVED = 2**25
"""Most entries of the slopes that one Hessian looks at; of larger tables it takes evenly spaced rows."""
NEWTON, HALVINGS = 30, 20
TOLERANCE = 1e-7
"""Newton's decrement, in units of the loss, under which a point counts as the minimum."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """logits(a) = base + sum_j a_j columns_j, with columns_j = sum_i mix_ji tables_i."""

    base: Array
    """`(B, C)`."""
    tables: Array | None = None
    """`(n, B, C)`; None: nothing moves."""
    mix: Array | None = None
    """`(K, n)`; None: the tables are the columns."""

    @property
    def count(self) -> int:
        """K."""
        return _count(self.mix, self.tables)

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return self.base.shape[0], self.base.shape[1]

    def some(self, rows: slice) -> Scores:
        """The same for some of the rows."""
        return replace(self, base=self.base[rows], tables=None if self.tables is None else self.tables[:, rows])

    def at(self, a: Array) -> _ScoresAt:
        """The point a, ready to be asked for rows."""
        return _ScoresAt(self, a)


@dataclass(frozen=True, kw_only=True)
class Features:
    """logits(a) = scale N(image + sum_j a_j image columns_j) N(text + sum_j a_j text columns_j)^T, N normalising rows.

    What does not move has no columns. Exact through the norms: a move along a feature itself does nothing.
    """

    text: Array
    """`(C, E)`."""
    image: Array
    """`(B, E)`."""
    text_columns: Array | None = None
    """`(K, C, E)`: held and differentiated for all classes at once, 4 MB each for C = 1000 and E = 512."""
    image_tables: Array | None = None
    """`(n, B, E)`: mixed block by block."""
    mix: Array | None = None
    """`(K, n)` of the image tables; None: they are the columns."""
    scale: float = 1.0

    @property
    def count(self) -> int:
        """K."""
        return len(self.text_columns) if self.text_columns is not None else _count(self.mix, self.image_tables)

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return len(self.image), len(self.text)

    def some(self, rows: slice) -> Features:
        """The same for some of the rows."""
        tables = None if self.image_tables is None else self.image_tables[:, rows]
        return replace(self, image=self.image[rows], image_tables=tables)

    def at(self, a: Array) -> _FeaturesAt:
        """The point a, ready to be asked for rows."""
        return _FeaturesAt(self, a)


Linear = Scores | Features
"""A table that a moves: linearly in what the box returned."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the rows should be: (1 - weight) of the label + weight of softmax(anchor)."""

    labels: Array
    """`(B,)` integers."""
    weight: float = 0.0
    anchor: Linear | None = None
    """A table without columns, whose scores are pulled towards; None: no pull."""

    def some(self, rows: slice) -> Target:
        """The same for some of the rows."""
        return replace(self, labels=self.labels[rows], anchor=None if self.anchor is None else self.anchor.some(rows))

    def blocks(self, size: int, classes: int) -> Iterator[Array]:
        """Target probabilities `(R, C)`, for `size` rows at a time."""
        weight = 0.0 if self.anchor is None else self.weight
        anchor = self.anchor.at(np.zeros(0)) if self.anchor is not None and weight > 0 else None
        for rows in _slices(len(self.labels), size):
            labels = self.labels[rows]
            share = np.zeros((len(labels), classes))
            if anchor is not None:
                share += weight * _softmax(anchor.logits(rows))[0]
            share[np.arange(len(labels)), labels] += 1.0 - weight
            yield share


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over rows: what shards of rows hand back, to be added in a fixed order."""

    rows: int
    loss: float
    gradient: Array | None = None
    """`(K,)`."""
    hessian: Array | None = None
    """`(K, K)`, positive semidefinite: exact for `Scores`; for `Features` Gauss-Newton's, without the curvature of N.
    Of a table with more than `CURVED` slopes an estimate from evenly spaced rows."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            rows=self.rows + other.rows,
            loss=self.loss + other.loss,
            gradient=_added(self.gradient, other.gradient),
            hessian=_added(self.hessian, other.hessian),
        )


def sums(table: Linear, target: Target, a: Array, *, slopes: bool = True, curved: int = CURVED) -> Sums:
    """Summed cross-entropy to the target at a, and its gradient and Hessian in a, over the rows of this table.

    Blocks follow from C and K alone, so that the bits are the same on any machine.

    Args:
        table: How logits follow from a.
        target: What they should be, for the same rows.
        a: `(K,)`.
        slopes: Whether gradient and Hessian are wanted.
        curved: As the constant.
    """
    B, C = table.shape
    K = table.count
    size = max(1, BLOCK // (C * max(1, K)))
    here = table.at(a)
    loss = 0.0
    for rows, share in zip(_slices(B, size), target.blocks(size, C), strict=True):
        logits = here.logits(rows)
        p, log_norm = _softmax(logits)
        loss += float(log_norm.sum() - np.vdot(share, logits))
        if slopes:
            here.pull(rows, p - share)
    if not slopes:
        return Sums(rows=B, loss=loss)
    gradient = here.pulled()
    every = -(-B * C * K // curved)
    sample = table.some(slice(None, None, every)).at(a) if every > 1 else here
    chosen = len(range(0, B, max(1, every)))
    hessian = np.zeros((K, K))
    for rows in _slices(chosen, size):
        p, _ = _softmax(sample.logits(rows))
        Z = sample.slopes(rows)
        # sum_n Z_n^T (diag(p_n) - p_n p_n^T) Z_n
        mean = np.matmul(p[:, None, :], Z)[:, 0]
        Z *= np.sqrt(p)[..., None]
        flat = Z.reshape(-1, K)
        hessian += flat.T @ flat - mean.T @ mean
    return Sums(rows=B, loss=loss, gradient=gradient, hessian=hessian * (B / max(1, chosen)))


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
        `(K,)` float64: the best point reached, never worse than the first guess.
    """
    q = np.zeros(table.count) if linear is None else linear
    a = np.zeros(table.count) if start is None else np.array(start, np.float64)
    for _ in range(NEWTON):
        here = sums(table, target, a)
        assert here.gradient is not None and here.hessian is not None
        now = here.loss / here.rows + float(0.5 * a @ precision @ a + q @ a)
        gradient = here.gradient / here.rows + precision @ a + q
        step = np.linalg.solve(here.hessian / here.rows + precision, gradient)
        slope = float(gradient @ step)
        if not slope > TOLERANCE:
            break
        length = 1.0
        for _ in range(HALVINGS):
            trial = a - length * step
            value = sums(table, target, trial, slopes=False).loss / here.rows
            value += float(0.5 * trial @ precision @ trial + q @ trial)
            if value <= now - 1e-4 * length * slope:  # Armijo's rule
                break
            length /= 2
        else:
            break
        a = trial
    return a


# ---------------------------------------------------------------------------------------------------------------------
# A point a: logits of rows, the slopes there, and the pull of residuals back to a gradient


class _ScoresAt:
    def __init__(self, table: Scores, a: Array) -> None:
        self._table, self._a = table, a
        self._gradient = np.zeros(table.count)

    def _columns(self, rows: slice) -> Array:
        assert self._table.tables is not None
        return mixed(self._table.mix, self._table.tables[:, rows])

    def logits(self, rows: slice) -> Array:
        base = self._table.base[rows].astype(np.float64)
        if self._table.tables is None:
            return base
        weights = self._a if self._table.mix is None else self._a @ self._table.mix
        return base + mixed(weights[None], self._table.tables[:, rows])[0]

    def slopes(self, rows: slice) -> Array:
        return np.ascontiguousarray(self._columns(rows).transpose(1, 2, 0))

    def pull(self, rows: slice, residual: Array) -> None:
        if self._table.tables is not None:
            self._gradient += np.tensordot(self._columns(rows), residual, 2)

    def pulled(self) -> Array:
        return self._gradient


class _FeaturesAt:
    def __init__(self, table: Features, a: Array) -> None:
        self._table, self._a = table, a
        raw = table.text.astype(np.float64)
        if table.text_columns is not None:
            raw = raw + np.tensordot(a, table.text_columns, 1)
        # A side without columns is normalised already, to float32.
        self._norm = np.linalg.norm(raw, axis=-1, keepdims=True) if table.text_columns is not None else 1.0
        self._text = raw / self._norm
        self._pulled = np.zeros_like(self._text)
        """What the rows so far say of dL/d N(text)."""
        self._gradient = np.zeros(table.count)
        self._flat: Array | None = None

    def _image(self, rows: slice) -> tuple[Array, Array | float]:
        image = self._table.image[rows].astype(np.float64)
        if self._table.image_tables is None:
            return image, 1.0
        weights = self._a if self._table.mix is None else self._a @ self._table.mix
        raw = image + mixed(weights[None], self._table.image_tables[:, rows])[0]
        norm = np.linalg.norm(raw, axis=-1, keepdims=True)
        return raw / norm, norm

    def _image_slopes(self, rows: slice, unit: Array, norm: Array | float) -> Array:
        assert self._table.image_tables is not None
        return _tangent(mixed(self._table.mix, self._table.image_tables[:, rows]), unit) / norm

    def logits(self, rows: slice) -> Array:
        return self._table.scale * (self._image(rows)[0] @ self._text.T)

    def slopes(self, rows: slice) -> Array:
        table = self._table
        image, norm = self._image(rows)
        C, E = self._text.shape
        Z = np.zeros((len(image), C, table.count))
        if table.text_columns is not None:
            if self._flat is None:
                # (E, C K): one matrix product a block gives all slopes of its rows.
                moved = _tangent(table.text_columns, self._text)
                moved *= table.scale / self._norm
                self._flat = np.ascontiguousarray(moved.transpose(2, 1, 0)).reshape(E, -1)
            np.matmul(image, self._flat, out=Z.reshape(len(image), -1))
        if table.image_tables is not None:
            Z += table.scale * (self._image_slopes(rows, image, norm) @ self._text.T).transpose(1, 2, 0)
        return Z

    def pull(self, rows: slice, residual: Array) -> None:
        image, norm = self._image(rows)
        if self._table.text_columns is not None:
            self._pulled += self._table.scale * (residual.T @ image)
        if self._table.image_tables is not None:
            back = self._table.scale * (residual @ self._text)
            self._gradient += np.tensordot(self._image_slopes(rows, image, norm), back, 2)

    def pulled(self) -> Array:
        if self._table.text_columns is None:
            return self._gradient
        # Both the derivative of N and its transpose are (I - u u^T) / |v|.
        back = _tangent(self._pulled[None], self._text)[0] / self._norm
        return self._gradient + np.tensordot(self._table.text_columns, back, 2)


def mixed(mix: Array | None, tables: Array) -> Array:
    """`(K, n)` times `(n, ...)` in float64, by slices of the second axis, so that no float64 copy of all n is made."""
    if mix is None:
        return tables.astype(np.float64)
    out = np.empty((len(mix), *tables.shape[1:]))
    size = max(1, BLOCK // max(1, tables[:, :1].size))
    for part in _slices(tables.shape[1], size):
        out[:, part] = np.tensordot(mix, tables[:, part].astype(np.float64), 1)
    return out


def _tangent(columns: Array, unit: Array) -> Array:
    """(I - u u^T) columns, row by row."""
    along = np.einsum("krc,rc->kr", columns, unit)
    return columns - along[..., None] * unit


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Probabilities `(R, C)` and the logarithm of the sum of exponentials `(R,)`."""
    top = logits.max(-1, keepdims=True)
    shares = np.exp(logits - top)
    total = shares.sum(-1, keepdims=True)
    shares /= total
    return shares, (top + np.log(total))[:, 0]


def _count(mix: Array | None, tables: Array | None) -> int:
    if tables is None:
        return 0
    return len(tables) if mix is None else len(mix)


def _added(mine: Array | None, theirs: Array | None) -> Array | None:
    return None if mine is None or theirs is None else mine + theirs


def _slices(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
