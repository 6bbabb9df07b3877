"""Subspaces of a prompt's space: the directions that a low-dimensional theta may move along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import RecipeError, RefusedError, nearest
from engine.protocols import Array
from engine.random_streams import Purpose, rng


def random_projection(dim: int, full_dim: int, seed: int) -> Array:
    """A seeded Gaussian basis: the random embedding of black-box prompt tuning.

    Entries are drawn from N(0, 1/dim), so a theta of unit entries moves each entry of the full space by one unit root
    mean square, as without a projection. Source: Sun et al., Black-Box Tuning for Language-Model-as-a-Service, 2022
    (arXiv 2201.03514), section 3.2, where the scale is tuned.

    Returns:
        `(dim, full_dim)` float32.
    """
    entries = rng(seed, 0, Purpose.PROJECTION).standard_normal((dim, full_dim), dtype=np.float32)
    return entries / np.float32(np.sqrt(dim))


def vocabulary_basis(count: int, vocabulary: Array, tokens: int) -> Array:
    """CBBT's basis: the leading principal components of the vocabulary's embeddings, for each token separately.

    The components are orthonormal, as in CBBT's repository, and scaled so that a theta of unit entries moves each entry
    of a context by one unit root mean square. Source: Guo et al. 2023 (arXiv 2312.15901); their commands do not use it.

    Args:
        count: Components per token.
        vocabulary: `(V, W)` embeddings.
        tokens: M.

    Returns:
        `(tokens * count, tokens * W)` float32, block diagonal.
    """
    rows = vocabulary.astype(np.float64)
    components = np.linalg.eigh(np.cov(rows, rowvar=False))[1][:, ::-1][:, :count].T
    # LAPACK's signs of eigenvectors are arbitrary: make the largest entry positive.
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    components = components * np.sign(largest) * np.sqrt(rows.shape[1] / count)
    return np.kron(np.eye(tokens), components).astype(np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class LowRank:
    """ZIP's parameters: each token moves by its own fixed projection of a row of U diag(s) V^T + v, with v shared.

    w_i = (U diag(1 + s) (V_0 + V)^T)_i + v in R^p; token i moves by w_i B_i. theta = (U, s, V, v) is 0 at the template
    and counts from where ZIP's code starts: U = 0, s = 1, V Gaussian, v = 0. B_i is a Gaussian `(p, W)` matrix; their
    code has a Fastfood transform, which has the same distribution and is slower to apply.

    Source: Park et al., ZIP, ICLR 2025, and its code.
    """

    start: Array
    """`(p, r)` float32: V_0."""
    projections: Array
    """`(M, p, W)` float32, entries N(0, 1/p): unit entries of v move each entry by one unit root mean square."""

    @property
    def dim(self) -> int:
        """d = (M + 1 + p) r + p."""
        return (len(self.projections) + 1 + len(self.start)) * self.start.shape[1] + len(self.start)

    def moves(self, theta: Array) -> Array:
        """`(d,)` theta -> `(M * W,)` float32, by how much each entry of the context moves."""
        count, (wide, rank) = len(self.projections), self.start.shape
        left, gains, right, shared = np.split(theta, np.cumsum([count * rank, rank, wide * rank]))
        factors = left.reshape(count, rank) * (1 + gains)
        rows = np.einsum("mr,pr->mp", factors, self.start + right.reshape(wide, rank)) + shared
        return np.einsum("mp,mpw->mw", rows, self.projections).reshape(-1).astype(np.float32)


def low_rank(rank: int, tokens: int, width: int, seed: int) -> LowRank:
    """ZIP's subspace in its published proportions: p is 62/512 of the token width (500 dimensions for 8 tokens).

    Args:
        rank: r.
        tokens: M.
        width: W.
        seed: For V_0 and the projections.
    """
    wide = max(1, 62 * width // 512)
    entries = rng(seed, 0, Purpose.PROJECTION)
    start = entries.standard_normal((wide, rank), dtype=np.float32)
    return LowRank(start, entries.standard_normal((tokens, wide, width), dtype=np.float32) / np.float32(np.sqrt(wide)))


def basis_of(subspace: str, full_dim: int, seed: int) -> Array | None:
    """The basis that a recipe names: None for `full`, `(DIM, full_dim)` float32 for `random:DIM`.

    DIM is a number, or a share of the full space such as 1/4 (512 dimensions for four tokens of CLIP).

    Raises RecipeError where it is neither, or DIM is not between 1 and `full_dim`.
    """
    if subspace == "full":
        return None
    kind, _, size = subspace.partition(":")
    if kind != "random":
        raise RecipeError(f"subspace {subspace!r}{nearest(kind, ['full', 'random'])}; it is full or random:DIM")
    return random_projection(_size(subspace, size, full_dim, "dimensions of the full space"), full_dim, seed)


def text_subspace(
    subspace: str, tokens: int, width: int, seed: int, vocabulary: Array | None = None
) -> Array | LowRank | None:
    """The subspace of a text context `(tokens, width)`: one of `basis_of`, `vocabulary:K` or `low-rank:RANK`.

    Raises:
        RecipeError: It is none of these, or its number is impossible.
        RefusedError: It is `vocabulary:K`, and the box does not show its vocabulary.
    """
    kind, _, size = subspace.partition(":")
    if kind == "low-rank":
        return low_rank(_size(subspace, size, width, "dimensions of a token"), tokens, width, seed)
    if kind == "vocabulary":
        if vocabulary is None:
            raise RefusedError(f"subspace {subspace!r}: this box does not show its vocabulary; use random:DIM or full")
        most = min(vocabulary.shape[1], len(vocabulary) - 1)
        return vocabulary_basis(_size(subspace, size, most, "components of the vocabulary"), vocabulary, tokens)
    if kind not in ("full", "random"):
        hint = nearest(kind, ["full", "random", "low-rank", "vocabulary"])
        raise RecipeError(
            f"subspace {subspace!r}{hint}; it is full, random:DIM, vocabulary:K (components a token) or low-rank:RANK"
        )
    return basis_of(subspace, tokens * width, seed)


def _size(subspace: str, word: str, most: int, what: str) -> int:
    """The number after the colon, from 1 to `most`, or a share `a/b` of `most`."""
    parts = word.split("/")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise RecipeError(f"subspace {subspace!r}: behind the colon stands a number, or a share such as 1/4")
    numbers = [int(part) for part in parts]
    if len(numbers) == 2 and numbers[1] > 0:
        numbers = [max(1, round(most * numbers[0] / numbers[1])) if numbers[0] else 0]
    if len(numbers) != 1 or not 1 <= numbers[0] <= most:
        raise RecipeError(f"subspace {subspace!r}: give a number between 1 and the {most} {what}")
    return numbers[0]
