"""The inner problem of a table search, solved without a query: minimise over coefficients a

    mean_n CE(label_n, logits_n(weights(a))) + paid(a),

the weights of a table's remembered moves being linear in a, and `paid` what steps cost (trust region, coupling).
`sums` adds loss and gradient over blocks of rows, so that the logits of a large table are never in memory at once;
`solve` is L-BFGS (Liu and Nocedal 1989; SciPy's) on these sums, whose cost grows with the number of moves and not with
its square or cube.

Letters in shapes: as in tables.py, and K coefficients a part. How logits follow from weights is told by tables.py.
Knows nothing of where moves come from, of theta, or of who asks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from engine.protocols import Array
from engine.search.sketch.tables import Table

SMALL = 2**23
"""Most entries of moves that are computed with in float64: 64 MB."""
ITERATIONS, PAIRS = 200, 20
TOLERANCE = 1e-6
"""Relative decrease of the loss under which L-BFGS stops."""


def mean_loss(table: Table, labels: Array, weights: Array, *, slopes: bool = True) -> tuple[float, Array]:
    """Mean cross-entropy to the labels, and its gradient by the weights `(G, n)`.

    Blocks follow from the shapes alone, so that the bits are the same on any machine.

    Args:
        table: How logits follow from weights.
        labels: `(B,)` integers, of the same rows.
        weights: `(G, n)`.
        slopes: Whether the gradient is wanted; it is zero otherwise.
    """
    here, loss, num_rows = table.at(weights), 0.0, table.shape[0]
    for rows in table.blocks():
        logits = here.logits(rows)
        p, log_norm = _softmax(logits)
        right = np.arange(len(p)), labels[rows]
        loss += float(log_norm.sum()) - float(logits[right].sum())
        if slopes:
            p[right] -= 1.0
            here.pull(rows, p)
    return loss / num_rows, here.pulled() / num_rows if slopes else np.zeros_like(weights)


Paid = Callable[[Array], tuple[float, Array]]
"""What coefficients `(G, K)` cost besides the loss, and the gradient of that."""


def solve(table: Table, labels: Array, mix: Array, paid: Paid, start: Array | None = None) -> Array:
    """argmin_a of mean CE(labels, logits(weights)) + paid(a), with weights_g = a_g mix_g.

    Args:
        table: How logits follow from weights.
        labels: `(B,)` integers.
        mix: `(G, K, n)`.
        paid: The trust region, and the coupling.
        start: `(G, K)` first guess; None: zero.

    Returns:
        `(G, K)` float64: the best point reached, never worse than the first guess.
    """
    parts, num, _ = mix.shape
    table = table.double() if table.size <= SMALL else table

    def value(flat: Array) -> tuple[float, Array]:
        a = flat.reshape(parts, num)
        loss, by_weights = mean_loss(table, labels, np.matmul(a[:, None], mix)[:, 0])
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


def span(rows: Array) -> Array:
    """`(K, d)` orthonormal rows of the same span."""
    values, vectors = np.linalg.eigh(rows @ rows.T)
    live = values > 1e-10 * values[-1]
    return (vectors[:, live] / np.sqrt(values[live])).T @ rows
