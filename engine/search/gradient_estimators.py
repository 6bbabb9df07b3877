"""From losses at probed points to an estimate of the gradient.

All directions u are scaled so that E[u u^T] = I: their length is about sqrt(d), so `h` is the root mean square of a
probe's entries in units of theta and means the same in any dimension. (A paper's unit sphere with radius eps is
`h = eps / sqrt(d)`; its factor d is then already inside.) Estimates are unbiased to first order in h.

The order of losses, everywhere: `losses[0]` belongs to theta itself (NaN where it was not asked for),
`losses[1 + j]` to `theta + probes[j]`. Losses that are NaN are left out; an estimate from none at all is NaN.

Knows nothing of how a step is made from a gradient, or of what is being searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.errors import RecipeError, nearest
from engine.protocols import Array


class Estimator(Protocol):
    """Where to look, and what the answers say of the gradient. A frozen dataclass."""

    @property
    def h(self) -> float:
        """Root mean square of a probe's entries, in units of theta."""
        ...

    @property
    def shares_base(self) -> bool:
        """Whether the estimate uses the loss at theta itself."""
        ...

    @property
    def block(self) -> int:
        """Probes that are only of use together: a list cut short is cut to a multiple of it."""
        ...

    def probes(self, theta: Array, rng: np.random.Generator) -> Array:
        """`(k, d)` float64 displacements from theta."""
        ...

    def gradient(self, theta: Array, probes: Array, losses: Array) -> Array:
        """`(d,)` from `(k, d)` displacements and `(1 + k,)` losses, the base first."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Directions: (k, d) rows with E[u u^T] = I


def gaussian(rng: np.random.Generator, k: int, d: int) -> Array:
    """Entries ~ N(0, 1)."""
    return rng.standard_normal((k, d))


def rademacher(rng: np.random.Generator, k: int, d: int) -> Array:
    """Entries +1 or -1."""
    return rng.integers(0, 2, (k, d)) * 2.0 - 1.0


def sphere(rng: np.random.Generator, k: int, d: int) -> Array:
    """Independent, uniform on the sphere of radius sqrt(d)."""
    u = rng.standard_normal((k, d))
    return u * (np.sqrt(d) / np.linalg.norm(u, axis=1, keepdims=True))


def orthonormal(rng: np.random.Generator, k: int, d: int) -> Array:
    """Uniform on the sphere of radius sqrt(d) and orthogonal to one another, in blocks of at most d.

    Their estimate has relative squared error (d - k) / k, against about (d + 1) / k for independent directions
    (notes on peers, section 3.1); it is exact at k = d.
    """
    blocks = []
    for first in range(0, k, d):
        q, r = np.linalg.qr(rng.standard_normal((d, min(d, k - first))))
        # The signs of R's diagonal make Q uniform (Haar) whatever convention LAPACK follows.
        blocks.append((q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T)
    return np.concatenate(blocks) * np.sqrt(d)


def sparse(rng: np.random.Generator, k: int, d: int) -> Array:
    """Gaussian on a random half of the coordinates (another half for each direction), times sqrt(2)."""
    return rng.standard_normal((k, d)) * (rng.random((k, d)) < 0.5) * np.sqrt(2.0)


DIRECTIONS: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "sphere": sphere,
    "orthonormal": orthonormal,
    "sparse": sparse,
}


def _check(k: int, h: float, directions: str) -> None:
    if k < 1:
        raise RecipeError(f"k={k} probes a step; a search needs at least 1")
    if not (h > 0 and np.isfinite(h)):
        raise RecipeError(f"h={h} is no probe size; give a positive number in units of theta")
    if directions not in DIRECTIONS:
        known = ", ".join(DIRECTIONS)
        raise RecipeError(f"directions={directions!r} are unknown{nearest(directions, DIRECTIONS)}; there are {known}")


# ---------------------------------------------------------------------------------------------------------------------
# Estimators


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """Forward differences that share their base: g = 1/k sum_j [(f(theta + h u_j) - f(theta)) / h] u_j.

    k + 1 evaluations for k directions. What to use while the loss is deterministic: with pairs, half of the
    evaluations go to removing an error that is already small.

    Example:
        >>> import numpy as np
        >>> estimator = OneSided(k=3, h=0.1)
        >>> theta, slope = np.zeros(3), np.array([1.0, -2.0, 0.5])
        >>> probes = estimator.probes(theta, np.random.default_rng(0))
        >>> estimator.gradient(theta, probes, np.append(0.0, probes @ slope)).round(6).tolist()
        [1.0, -2.0, 0.5]
    """

    k: int = 4
    h: float = 0.05
    directions: str = "orthonormal"

    shares_base = True
    block = 1

    def __post_init__(self) -> None:
        _check(self.k, self.h, self.directions)

    def probes(self, theta: Array, rng: np.random.Generator) -> Array:
        return self.h * DIRECTIONS[self.directions](rng, self.k, len(theta))

    def gradient(self, theta: Array, probes: Array, losses: Array) -> Array:
        rises = losses[1:] - losses[0]
        use = np.isfinite(rises)
        if not use.any():
            return np.full(len(theta), np.nan)
        return rises[use] @ probes[use] / (use.sum() * self.h**2)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Central differences: g = 1/k sum_j [(f(theta + h u_j) - f(theta - h u_j)) / (2h)] u_j.

    2k evaluations for k directions, `probes` in the order +u_1, -u_1, +u_2, ... Even-order error cancels, and of
    noise in the losses at equal evaluations they pass on about half as much variance as one-sided differences.
    """

    k: int = 2
    h: float = 0.05
    directions: str = "orthonormal"

    shares_base = False
    block = 2

    def __post_init__(self) -> None:
        _check(self.k, self.h, self.directions)

    def probes(self, theta: Array, rng: np.random.Generator) -> Array:
        u = self.h * DIRECTIONS[self.directions](rng, self.k, len(theta))
        return np.stack([u, -u], axis=1).reshape(2 * self.k, len(theta))

    def gradient(self, theta: Array, probes: Array, losses: Array) -> Array:
        slopes = (losses[1::2] - losses[2::2]) / (2 * self.h**2)
        use = np.isfinite(slopes)
        if not use.any():
            return np.full(len(theta), np.nan)
        return slopes[use] @ probes[0::2][use] / use.sum()


@dataclass(frozen=True, kw_only=True)
class Spsa:
    """SPSA as BlackVIP and ZIP run it: g = mean_j (f(theta + c p_j) - f(theta - c p_j)) / (2 c p_j), elementwise.

    p ~ Uniform([-1, -1/2] U [1/2, 1]). Dividing by p where other rules multiply is Spall's form; it is unbiased for
    any p of zero mean inverse correlation, and costs E[p^2] E[1/p^2] = 7/6 of Rademacher's variance. `h` is their c:
    here the largest entry of a probe, not its root mean square.

    Source: Spall 1992; Oh et al., BlackVIP, CVPR 2023, arXiv 2303.14773; Park et al., ZIP, ICLR 2025.
    """

    k: int = 5
    h: float = 0.01

    shares_base = False
    block = 2

    def __post_init__(self) -> None:
        _check(self.k, self.h, "rademacher")

    def probes(self, theta: Array, rng: np.random.Generator) -> Array:
        size = (self.k, len(theta))
        p = self.h * rng.uniform(0.5, 1.0, size) * (rng.integers(0, 2, size) * 2.0 - 1.0)
        return np.stack([p, -p], axis=1).reshape(2 * self.k, len(theta))

    def gradient(self, theta: Array, probes: Array, losses: Array) -> Array:
        rises = losses[1::2] - losses[2::2]
        use = np.isfinite(rises)
        if not use.any():
            return np.full(len(theta), np.nan)
        return (rises[use, None] / (2 * probes[0::2][use])).mean(axis=0)
