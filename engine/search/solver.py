"""The inner problem of a table search, solved without a query: minimise over coefficients a

    mean_n CE(target_n, logits_n(weights(a))) + paid(a),

the weights of a table's remembered moves being linear in a, and `paid` what steps cost (trust region, pulls).
`sums` adds loss and gradient over blocks of rows, so that the logits of a large table are never in memory at once;
`solve` is L-BFGS (Liu and Nocedal 1989; SciPy's) on these sums, whose cost grows with the number of moves and not with
its square or cube.

Letters in shapes: as in tables.py, and K coefficients a part. How logits follow from weights is told by tables.py.
Knows nothing of where moves come from, of theta, or of who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

from engine.core import Array
from engine.search.tables import Table

SMALL = 2**23
"""Most entries of moves that are computed with in float64: 64 MB."""
ITERATIONS, PAIRS = 200, 20
TOLERANCE = 1e-6
"""Relative decrease of the loss under which L-BFGS stops."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the rows should be: (1 - weight) of the label + weight of softmax(anchor)."""

    labels: Array
    """`(B,)` integers."""
    weight: float = 0.0
    anchor: Table | None = None
    """A table that does not move, whose scores are pulled towards; None: no pull."""

    @cached_property
    def pull(self) -> Array | None:
        """softmax(anchor), `(B, C)` float32; None: no pull. Made once: every step of the solver compares with it."""
        if self.anchor is None or not self.weight > 0:
            return None
        shares, here = np.empty(self.anchor.shape, np.float32), self.anchor.at(np.zeros((1, 0)))
        for rows in self.anchor.blocks():
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


def mean_loss(table: Table, target: Target, weights: Array, *, slopes: bool = True) -> tuple[float, Array]:
    """Mean cross-entropy to the target, and its gradient by the weights `(G, n)`.

    Blocks follow from the shapes alone, so that the bits are the same on any machine.

    Args:
        table: How logits follow from weights.
        target: What they should be, for the same rows.
        weights: `(G, n)`.
        slopes: Whether the gradient is wanted; it is zero otherwise.
    """
    here, loss, num_rows = table.at(weights), 0.0, table.shape[0]
    for rows in table.blocks():
        logits = here.logits(rows)
        p, log_norm = _softmax(logits)
        loss += float(log_norm.sum()) - target.compare(rows, logits, p)
        if slopes:
            here.pull(rows, p)
    return loss / num_rows, here.pulled() / num_rows if slopes else np.zeros_like(weights)


Paid = Callable[[Array], tuple[float, Array]]
"""What coefficients `(G, K)` cost besides the loss, and the gradient of that."""


def solve(table: Table, target: Target, mix: Array, paid: Paid, start: Array | None = None) -> Array:
    """argmin_a of mean CE(target, logits(weights)) + paid(a), with weights_g = a_g mix_g.

    Args:
        table: How logits follow from weights.
        target: What they should be.
        mix: `(G, K, n)`.
        paid: The trust region, and pulls.
        start: `(G, K)` first guess; None: zero.

    Returns:
        `(G, K)` float64: the best point reached, never worse than the first guess.
    """
    parts, num, _ = mix.shape
    table = table.double() if table.size <= SMALL else table

    def value(flat: Array) -> tuple[float, Array]:
        a = flat.reshape(parts, num)
        loss, by_weights = mean_loss(table, target, np.matmul(a[:, None], mix)[:, 0])
        cost, by_cost = paid(a)
        return loss + cost, (np.matmul(mix, by_weights[..., None])[..., 0] + by_cost).ravel()

    first = np.zeros(parts * num) if start is None else np.asarray(start, np.float64).ravel()
    options = {"maxiter": ITERATIONS, "maxcor": PAIRS, "ftol": TOLERANCE, "gtol": 0.0}
    found = minimize(value, first, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(parts, num)


def _softmax(logits: Array) -> tuple[Array, Array]:
    """Probabilities `(R, C)` and the logarithm of the sum of exponentials `(R,)`."""
    top = logits.max(-1, keepdims=True)
    shares = np.exp(logits - top)
    total = shares.sum(-1, keepdims=True)
    shares /= total
    return shares, (top + np.log(total))[:, 0]
