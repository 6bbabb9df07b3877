"""What is to be told apart: images by reference, their labels, and the three splits of a task.

Letters in shapes: n images, h and w the sides of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Array = np.ndarray


class ImageSource(Protocol):
    """A task's images by reference: picklable, small, decoded where the box lives."""

    def __len__(self) -> int: ...
    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB arrays `(h, w, 3)` of these rows. Raises TaskError naming a file that cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Subset:
    """Some rows of another source, in the order given."""

    source: ImageSource
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Array]:
        return self.source.read([self.rows[row] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images and their labels."""

    source: ImageSource
    labels: Array
    """`(n,)` int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Array) -> Split:
        """These rows, in this order."""
        return Split(source=Subset(self.source, tuple(int(r) for r in rows)), labels=self.labels[rows])


@dataclass(frozen=True, kw_only=True)
class Task:
    """Classes, a template with one `{}` for the class name, and three splits."""

    uri: str
    classes: tuple[str, ...]
    template: str
    train: Split
    val: Split
    test: Split
    shots: int = 1
    """Training images of a class."""
    seed: int = 1
    """That drew the few-shot sample."""
    half: str = "all"
    """Which classes of the pool these are: all, base (the first half) or new (the second)."""
    control: bool = False
    """A control: neither CoOp nor a linear probe is clearly above zero-shot here."""
    test_of: int | None = None
    """Images of the whole test split, where `test` is a part of it that was drawn; None: it is whole."""

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}
