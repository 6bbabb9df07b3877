"""The inner problem of a table search, solved without a query: minimise over the coefficients a of K known columns

    mean_n CE(target_n, logits_n(a)) + 1/2 a^T P a + q^T a.

`sums` adds loss, gradient and a K x K Hessian over blocks of rows and classes, so that the logits and slopes of a large
table are never in memory at once, and so that shards of rows may be summed apart and added up; `solve` is a damped
Newton on these sums.

Letters in shapes: as in engine.core, and K columns, R rows of a block. How logits follow from a is told by tables.py.
Knows nothing of where columns come from, of theta, or of who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from engine.core import Array
from engine.search.tables import Linear, blocks, mixed_once, row_blocks

CURVED = 2**24
"""Most entries of the slopes that one Hessian looks at; of larger tables it takes evenly spaced rows."""
NEWTON, HALVINGS = 30, 20
TOLERANCE = 1e-7
"""Newton's decrement, in units of the loss, under which a point counts as the minimum."""


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

    @cached_property
    def pull(self) -> Array | None:
        """softmax(anchor), `(B, C)` float32; None: no pull. Made once: every step of the solver compares with it."""
        if self.anchor is None or not self.weight > 0:
            return None
        shares, here = np.empty(self.anchor.shape, np.float32), self.anchor.at(np.zeros(0))
        for rows in row_blocks(self.anchor):
            shares[rows] = _softmax(here.logits(rows))[0]
        return shares

    def compare(self, rows: slice, logits: Array, p: Array) -> float:
        """The sum of target times logits; from the probabilities p `(R, C)` the target is taken off in place."""
        labels = np.arange(len(p)), self.labels[rows]
        weight = 0.0 if self.pull is None else self.weight
        p[labels] -= 1.0 - weight
        found = (1.0 - weight) * float(logits[labels].sum())
        if self.pull is not None:
            p -= weight * self.pull[rows]
            found += weight * float(np.vdot(self.pull[rows], logits))
        return found


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

    Blocks follow from the shapes alone, so that the bits are the same on any machine.

    Args:
        table: How logits follow from a.
        target: What they should be, for the same rows.
        a: `(K,)`.
        slopes: Whether gradient and Hessian are wanted.
        curved: As the constant.
    """
    found = _first(table, target, a, slopes=slopes)
    return replace(found, hessian=_hessian(table, target, a, curved=curved)[0]) if slopes else found


def _first(table: Linear, target: Target, a: Array, *, slopes: bool = True) -> Sums:
    """Loss and gradient."""
    here, loss = table.at(a), 0.0
    for rows in row_blocks(table):
        logits = here.logits(rows)
        p, log_norm = _softmax(logits)
        loss += float(log_norm.sum()) - target.compare(rows, logits, p)
        if slopes:
            here.pull(rows, p)
    return Sums(rows=table.shape[0], loss=loss, gradient=here.pulled() if slopes else None)


def _hessian(
    table: Linear, target: Target, a: Array, *, curved: int = CURVED, whole: bool = False
) -> tuple[Array, Array]:
    """Gauss-Newton's, sum_n Z_n^T (diag(p_n) - p_n p_n^T) Z_n with Z_n `(C, K)` the slopes of a row's logits; and,
    where wanted, the rest of the `whole` one: the curvature of the logits themselves."""
    (B, C), K = table.shape, table.count
    every = slice(None, None, max(1, -(-B * C * K // curved)))
    if every.step > 1:
        table, target = table.some(every), target.some(every)
    here, hessian, rest = table.at(a), np.zeros((K, K)), np.zeros((K, K))
    for rows in row_blocks(table):
        logits = here.logits(rows)
        p = _softmax(logits)[0]
        mean = np.zeros((len(p), K))
        for classes in blocks(C, len(p) * K):
            Z = here.slopes(rows, classes)
            root = np.sqrt(p[:, classes])
            Z *= root[..., None]
            mean += np.matmul(root[:, None], Z)[:, 0]
            flat = Z.reshape(-1, K)
            hessian += flat.T @ flat
        hessian -= mean.T @ mean
        if whole:
            target.compare(rows, logits, p)
            rest += here.bend(rows, p)
    share = B / max(1, table.shape[0])
    return hessian * share, rest * share


def solve(
    table: Linear, target: Target, precision: Array, linear: Array | None = None, start: Array | None = None
) -> Array:
    """argmin_a mean CE(target, logits(a)) + 1/2 a^T precision a + linear^T a, by damped Newton steps.

    The Hessian is the whole one where that is positive definite, else Gauss-Newton's.

    Args:
        table: How logits follow from a.
        target: What they should be.
        precision: `(K, K)` positive definite: the trust region, and pulls.
        linear: `(K,)`; None: zero.
        start: `(K,)` first guess; None: zero.

    Returns:
        `(K,)` float64: the best point reached, never worse than the first guess.
    """
    B, table = table.shape[0], mixed_once(table)
    q = np.zeros(table.count) if linear is None else linear

    def at(a: Array) -> tuple[float, Array]:
        found = _first(table, target, a)
        assert found.gradient is not None
        return found.loss / B + float(0.5 * a @ precision @ a + q @ a), found.gradient / B + precision @ a + q

    a = np.zeros(table.count) if start is None else np.array(start, np.float64)
    now, gradient = at(a)
    for _ in range(NEWTON):
        hessian, rest = _hessian(table, target, a, whole=True)
        hessian = hessian / B + precision
        if np.linalg.eigvalsh(hessian + rest / B)[0] > 0:
            hessian += rest / B
        step = np.linalg.solve(hessian, gradient)
        slope = float(gradient @ step)
        if not slope > TOLERANCE:
            break
        length = 1.0
        for _ in range(HALVINGS):
            trial = a - length * step
            # With its gradient: the first trial is nearly always taken, and then the next step begins with both.
            value, there = at(trial)
            if value <= now - 1e-4 * length * slope:  # Armijo's rule
                break
            length /= 2
        else:
            break
        a, now, gradient = trial, value, there
    return a


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Probabilities `(R, C)` and the logarithm of the sum of exponentials `(R,)`."""
    top = logits.max(-1, keepdims=True)
    shares = np.exp(logits - top)
    total = shares.sum(-1, keepdims=True)
    shares /= total
    return shares, (top + np.log(total))[:, 0]


def _added(mine: Array | None, theirs: Array | None) -> Array | None:
    return None if mine is None or theirs is None else mine + theirs
