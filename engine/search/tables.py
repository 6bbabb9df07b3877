"""Tables that K coefficients a move, and what follows from them: logits of rows, slopes, curvature, gradients.

Columns are moves of a table; they are given as mixes of n remembered tables, and are mixed for a block of rows and
classes at a time where they are large.

Letters in shapes: as in engine.core, and K columns, n remembered tables that they are mixed from, R rows of a block.
Knows nothing of losses, of where tables come from, or of theta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from engine.core import Array

BLOCK = 2**20
"""Most entries of the logits `(R, C)`, or of the slopes `(R, c, K)` of c classes, that are held at once: 8 MB."""
MIXED = 2**23
"""Most entries of columns that are mixed once for all steps: 64 MB."""


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


# ---------------------------------------------------------------------------------------------------------------------
# A point a: logits of rows, the slopes there, and the pull of residuals back to a gradient


class _ScoresAt:
    def __init__(self, table: Scores, a: Array) -> None:
        self._table = table
        self._weights = a if table.mix is None else a @ table.mix
        self._gradient = np.zeros(len(self._weights))

    def logits(self, rows: slice) -> Array:
        base = self._table.base[rows].astype(np.float64)
        if self._table.tables is None:
            return base
        return base + mixed(self._weights[None], self._table.tables[:, rows])[0]

    def slopes(self, rows: slice, classes: slice) -> Array:
        assert self._table.tables is not None
        return np.ascontiguousarray(mixed(self._table.mix, self._table.tables[:, rows, classes]).transpose(1, 2, 0))

    def bend(self, rows: slice, residual: Array) -> Array:
        return np.zeros((self._table.count, self._table.count))

    def pull(self, rows: slice, residual: Array) -> None:
        if self._table.tables is not None:
            self._gradient += _dot(self._table.tables[:, rows], residual)

    def pulled(self) -> Array:
        return self._gradient if self._table.mix is None else self._table.mix @ self._gradient


class _FeaturesAt:
    def __init__(self, table: Features, a: Array) -> None:
        self._table = table
        raw = table.text.astype(np.float64)
        if table.text_columns is not None:
            raw = raw + np.tensordot(a, table.text_columns, 1)
        # A side without columns is normalised already, to float32.
        self._norm = np.ones((len(raw), 1))
        if table.text_columns is not None:
            self._norm = np.linalg.norm(raw, axis=-1, keepdims=True)
        self._text = raw / self._norm
        self._pulled = np.zeros_like(self._text)
        """What the rows so far say of dL/d N(text)."""
        self._weights = a if table.mix is None else a @ table.mix
        self._gradient = np.zeros(len(self._weights) if table.image_tables is not None else 0)

    def _image(self, rows: slice) -> tuple[Array, Array]:
        image = self._table.image[rows].astype(np.float64)
        if self._table.image_tables is None:
            return image, np.ones((len(image), 1))
        raw = image + mixed(self._weights[None], self._table.image_tables[:, rows])[0]
        norm = np.linalg.norm(raw, axis=-1, keepdims=True)
        return raw / norm, norm

    def logits(self, rows: slice) -> Array:
        return self._table.scale * (self._image(rows)[0] @ self._text.T)

    def slopes(self, rows: slice, classes: slice) -> Array:
        table, text = self._table, self._text[classes]
        image, norm = self._image(rows)
        Z = np.zeros((len(image), len(text), table.count))
        if table.text_columns is not None:
            moved = _tangent(table.text_columns[:, classes], text)
            moved *= table.scale / self._norm[classes]
            # (E, c K): one matrix product gives all slopes of these rows and classes.
            flat = np.ascontiguousarray(moved.transpose(2, 1, 0)).reshape(text.shape[1], -1)
            np.matmul(image, flat, out=Z.reshape(len(image), -1))
        if table.image_tables is not None:
            moved = _tangent(mixed(table.mix, table.image_tables[:, rows]), image) / norm
            Z += table.scale * (moved @ text.T).transpose(1, 2, 0)
        return Z

    def bend(self, rows: slice, residual: Array) -> Array:
        """`(K, K)`: residuals times the second derivative of the logits, but for what both sides do together."""
        table, (image, norm) = self._table, self._image(rows)
        found = np.zeros((table.count, table.count))
        if table.text_columns is not None:
            found += _bend(table.text_columns, self._text, self._norm, table.scale * (residual.T @ image))
        if table.image_tables is not None:
            columns = mixed(table.mix, table.image_tables[:, rows])
            found += _bend(columns, image, norm, table.scale * (residual @ self._text))
        return found

    def pull(self, rows: slice, residual: Array) -> None:
        image, norm = self._image(rows)
        if self._table.text_columns is not None:
            self._pulled += self._table.scale * (residual.T @ image)
        if self._table.image_tables is not None:
            # The derivative of N and its transpose are both (I - u u^T) / |v|.
            back = _tangent(self._table.scale * (residual @ self._text)[None], image)[0] / norm
            self._gradient += _dot(self._table.image_tables[:, rows], back)

    def pulled(self) -> Array:
        gradient = np.zeros(self._table.count)
        if self._table.text_columns is not None:
            back = _tangent(self._pulled[None], self._text)[0] / self._norm
            gradient += np.tensordot(self._table.text_columns, back, 2)
        if self._table.image_tables is not None:
            gradient += self._gradient if self._table.mix is None else self._table.mix @ self._gradient
        return gradient


def mixed(mix: Array | None, tables: Array) -> Array:
    """`(K, n)` times `(n, ...)` in float64, by slices of the second axis, so that no float64 copy of all n is made."""
    if mix is None:
        return tables.astype(np.float64)
    out = np.empty((len(mix), *tables.shape[1:]))
    for part in blocks(tables.shape[1], tables[:, :1].size):
        out[:, part] = np.tensordot(mix, tables[:, part].astype(np.float64), 1)
    return out


def mixed_once(table: Linear) -> Linear:
    """The same without a mix, where the columns are small."""
    tables = table.tables if isinstance(table, Scores) else table.image_tables
    if tables is None or table.mix is None or len(table.mix) * tables[0].size > MIXED:
        return table
    columns = mixed(table.mix, tables)
    if isinstance(table, Scores):
        return replace(table, tables=columns, mix=None)
    return replace(table, image_tables=columns, mix=None)


def _dot(tables: Array, weights: Array) -> Array:
    """`(n, ...)` times `(...)` in float64, a table at a time."""
    return np.array([np.vdot(table, weights) for table in tables])


def _tangent(columns: Array, unit: Array) -> Array:
    """(I - u u^T) columns, row by row."""
    along = np.einsum("krc,rc->kr", columns, unit)
    return columns - along[..., None] * unit


def _bend(columns: Array, unit: Array, norm: Array, back: Array) -> Array:
    """`(K, K)`: back `(R, E)`, the derivative by u = N(v), times the second derivative of N along pairs of columns.

    With w = along u + t, that is -(b.u t.t' + b.t along' + b.t' along) / |v|^2.
    """
    K, E = len(columns), unit.shape[1]
    found, cross = np.zeros((K, K)), np.zeros((K, K))
    for rows in blocks(len(unit), K * E):
        w, u, b = columns[:, rows], unit[rows], back[rows]
        along = np.einsum("kre,re->kr", w, u) / norm[rows, 0]
        across = _tangent(w, u) / norm[rows]
        cross += np.einsum("kre,re->kr", across, b) @ along.T
        found -= (across * (b * u).sum(-1, keepdims=True)).reshape(K, -1) @ across.reshape(K, -1).T
    return found - cross - cross.T


def row_blocks(table: Linear) -> Iterator[slice]:
    """Rows whose logits, and the image columns of these rows, fit into a block."""
    widest = table.shape[1]
    if isinstance(table, Features) and table.image_tables is not None:
        widest = max(widest, table.count * table.image.shape[1])
    return blocks(table.shape[0], widest)


def blocks(count: int, entries: int) -> Iterator[slice]:
    """Slices of 0 ... count, each of as many as fit into a block with so many entries apiece."""
    size = max(1, BLOCK // max(1, entries))
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def _count(mix: Array | None, tables: Array | None) -> int:
    if tables is None:
        return 0
    return len(tables) if mix is None else len(mix)


At = _ScoresAt | _FeaturesAt
"""A point a of a table."""
