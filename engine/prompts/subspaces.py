"""Subspaces of a prompt's space: which directions a low-dimensional theta may move along.

Knows nothing of what the directions mean.
"""

from __future__ import annotations

import numpy as np

from engine.core import Array
from engine.errors import RecipeError, nearest
from engine.noise import Purpose, rng


def random_projection(dim: int, full_dim: int, seed: int) -> Array:
    """A seeded Gaussian basis: the random embedding of black-box prompt tuning.

    Entries are drawn from N(0, 1/dim), so that theta of unit entries moves each entry of the full space by one unit
    root mean square, as it does without a projection. Sun et al., Black-Box Tuning for Language-Model-as-a-Service,
    2022 (arXiv 2201.03514), section 3.2, with the scale as here instead of a tuned one.

    Returns:
        `(dim, full_dim)` float32.
    """
    entries = rng(seed, 0, Purpose.PROJECTION).standard_normal((dim, full_dim), dtype=np.float32)
    return entries / np.float32(np.sqrt(dim))


def basis_of(subspace: str, full_dim: int, seed: int) -> Array | None:
    """The basis that a recipe's word asks for: None for `full`, `(DIM, full_dim)` for `random:DIM`.

    Raises:
        RecipeError: The word is neither, or DIM is not between 1 and `full_dim`.
    """
    if subspace == "full":
        return None
    kind, _, size = subspace.partition(":")
    if kind != "random" or not (size.isascii() and size.isdigit()):
        raise RecipeError(f"subspace {subspace!r}{nearest(kind, ['full', 'random'])}; it is full or random:DIM")
    if not 1 <= int(size) <= full_dim:
        raise RecipeError(f"subspace {subspace!r}: DIM is between 1 and the {full_dim} dimensions of the full space")
    return random_projection(int(size), full_dim, seed)
