"""Tables that a weighted sum of remembered moves changes, and what follows: logits of rows, and gradients by them.

Letters in shapes: as in protocols.py, and n remembered moves, R rows of a block, G parts of theta: 1, or C where each
class has a part, and so weights, of its own.
Knows nothing of losses, of where moves come from, or of theta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engine.errors import RefusedError
from engine.protocols import Array, Outputs

Parts = dict[str, Array]
"""A table, or a stack of them, by what it holds: `scores`, or `text` and `image` features."""
FACING = 0.2
"""Least cosine to the current feature at which the central projection of another is trusted."""
BLOCK = 2**20
"""Most entries of the logits `(R, C)`, or of the image moves `(n, R, E)`, that are held at once: 8 MB."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """logits(w) = base + sum_i w_i moves_i, the row of a class by the weights of its part."""

    base: Array
    """`(C, B)`."""
    moves: Array | None = None
    """`(n, C, B)`; None: nothing moves."""

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return self.base.shape[1], self.base.shape[0]

    def at(self, weights: Array) -> _ScoresAt:
        """The point `(G, n)`, ready to be asked for rows."""
        return _ScoresAt(self, weights)

    def blocks(self) -> Iterator[slice]:
        """Rows whose logits fit into a block."""
        return blocks(self.shape[0], self.shape[1])

    def double(self) -> Scores:
        """The same in float64."""
        return replace(self, moves=None if self.moves is None else self.moves.astype(np.float64))

    @property
    def size(self) -> int:
        """Entries of all moves."""
        return 0 if self.moves is None else self.moves.size


@dataclass(frozen=True, kw_only=True)
class Features:
    """logits(w) = scale N(image + sum_i w_i image moves_i) N(text + sum_i w_i text moves_i)^T, N normalising rows.

    What does not move has no moves. Exact through the norms: a move along a feature itself does nothing.
    Images move with all of theta: with image moves G is 1.
    """

    text: Array
    """`(C, E)`."""
    image: Array
    """`(B, E)`."""
    text_moves: Array | None = None
    """`(n, C, E)`."""
    image_moves: Array | None = None
    """`(n, B, E)`."""
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """B, C."""
        return len(self.image), len(self.text)

    def at(self, weights: Array) -> _FeaturesAt:
        """The point `(G, n)`, ready to be asked for rows."""
        return _FeaturesAt(self, weights)

    def blocks(self) -> Iterator[slice]:
        """Rows whose logits, and whose image moves, fit into a block."""
        moves = 0 if self.image_moves is None else len(self.image_moves) * self.image.shape[1]
        return blocks(len(self.image), max(len(self.text), moves))

    def double(self) -> Features:
        """The same in float64."""
        text, image = (m if m is None else m.astype(np.float64) for m in (self.text_moves, self.image_moves))
        return replace(self, text_moves=text, image_moves=image)

    @property
    def size(self) -> int:
        """Entries of all moves."""
        return sum(0 if moves is None else moves.size for moves in (self.text_moves, self.image_moves))


Table = Scores | Features
"""What a box returned, and how it moves."""


# ---------------------------------------------------------------------------------------------------------------------
# A point: logits of rows there, and the pull of residuals back to a gradient


class _ScoresAt:
    def __init__(self, table: Scores, weights: Array) -> None:
        self._table, self._weights = table, weights
        self._gradient = np.zeros(weights.shape)

    def logits(self, rows: slice) -> Array:
        base = self._table.base[:, rows].astype(np.float64)
        if self._table.moves is not None:
            base += _moved(self._weights, self._table.moves[:, :, rows])
        return base.T

    def pull(self, rows: slice, residual: Array) -> None:
        """Take in dL/d logits `(R, C)` of these rows."""
        if self._table.moves is not None:
            self._gradient += _pulled(self._table.moves[:, :, rows], residual.T, len(self._gradient))

    def pulled(self) -> Array:
        """`(G, n)`: dL/d weights, of all rows so far."""
        return self._gradient


class _FeaturesAt:
    def __init__(self, table: Features, weights: Array) -> None:
        self._table, self._weights = table, weights
        raw = table.text.astype(np.float64)
        # A side that does not move is normalised already, to float32.
        self._norm = np.ones((len(raw), 1))
        if table.text_moves is not None:
            raw += _moved(weights, table.text_moves)
            self._norm = np.linalg.norm(raw, axis=-1, keepdims=True)
        self._text = raw / self._norm
        self._back = np.zeros_like(self._text)
        """What the rows so far say of dL/d N(text)."""
        self._gradient = np.zeros(weights.shape)

    def _image(self, rows: slice) -> tuple[Array, Array]:
        image = self._table.image[rows].astype(np.float64)
        if self._table.image_moves is None:
            return image, np.ones((len(image), 1))
        moves = self._table.image_moves[:, rows]
        raw = image + np.tensordot(self._weights[0].astype(moves.dtype), moves, 1)
        norm = np.linalg.norm(raw, axis=-1, keepdims=True)
        return raw / norm, norm

    def logits(self, rows: slice) -> Array:
        return self._table.scale * (self._image(rows)[0] @ self._text.T)

    def pull(self, rows: slice, residual: Array) -> None:
        """Take in dL/d logits `(R, C)` of these rows."""
        image, norm = self._image(rows)
        if self._table.text_moves is not None:
            self._back += self._table.scale * (residual.T @ image)
        if self._table.image_moves is not None:
            back = _through_norm(self._table.scale * (residual @ self._text), image, norm)
            moves = self._table.image_moves[:, rows]
            self._gradient[0] += np.tensordot(moves, back.astype(moves.dtype), 2)

    def pulled(self) -> Array:
        """`(G, n)`: dL/d weights, of all rows so far."""
        if self._table.text_moves is None:
            return self._gradient
        back = _through_norm(self._back, self._text, self._norm)
        return self._gradient + _pulled(self._table.text_moves, back, len(self._gradient))


def _moved(weights: Array, moves: Array) -> Array:
    """`(G, n)` and `(n, C, ...)` -> `(C, ...)`, summed in the moves' own precision: no copy of large ones is made."""
    return np.matmul(weights.astype(moves.dtype)[:, None], moves.swapaxes(0, 1))[:, 0]


def _pulled(moves: Array, back: Array, parts: int) -> Array:
    """`(n, C, ...)` and `(C, ...)` -> `(G, n)`: the transpose of `_moved`."""
    found = np.matmul(moves.swapaxes(0, 1), back.astype(moves.dtype)[..., None])[..., 0]
    return found if parts > 1 else found.sum(0, keepdims=True)


def _through_norm(back: Array, unit: Array, norm: Array) -> Array:
    """dL/dv from dL/dN(v): N's derivative, (I - u u^T) / |v|, is its own transpose."""
    return (back - np.einsum("re,re->r", back, unit)[:, None] * unit) / norm


def blocks(count: int, entries: int) -> Iterator[slice]:
    """Slices of 0 ... count, each of as many as fit into a block with so many entries apiece."""
    size = max(1, BLOCK // max(1, entries))
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


# ---------------------------------------------------------------------------------------------------------------------
# From answers to what moves


def parts_of(outputs: Outputs, count: int, moves: frozenset[str]) -> tuple[Parts, Parts]:
    """What moves with the candidate, `(P, ...)`, and what does not. Scores move with everything."""
    if outputs.scores is not None:
        # Classes first, as text features have them; copied, since bits depend on the order in memory.
        return {"scores": np.ascontiguousarray(outputs.scores.transpose(0, 2, 1))}, {}
    if outputs.text is None or outputs.image is None:
        raise RefusedError("sketch needs scores or features; this box gives neither")
    given = {"text": outputs.text, "image": outputs.image}
    moving = {name: part for name, part in given.items() if name in moves}
    for name, part in moving.items():
        if len(part) != count:
            raise RefusedError(f"{name} features move by the prompt's space; {len(part)} came for {count} candidates")
    return moving, {name: part[0] for name, part in given.items() if name not in moves}


def across(base: Array, table: Array, name: str) -> Array:
    """The move from one table to another, float64. Features are projected centrally onto the plane that touches the
    sphere at the base: N(base + move) is the other table again, and there is no part along the base."""
    base = base.astype(np.float64)
    if name == "scores":
        return table - base
    along = np.einsum("re,re->r", table, base)[:, None]
    return table / np.maximum(along, FACING) - base
