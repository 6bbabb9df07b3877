"""What a search method is told of what it searches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """The space of a prompt's theta, as the prompt states it for one box.

    >>> Space(dim=80, parts=5).width
    16
    """

    dim: int
    """d."""
    parts: int = 1
    """G: theta falls into so many equal parts, each of which moves the answers of one class alone."""
    unit: float = 1.0
    """One unit of theta in the raw units of the box, those of published step sizes: the standard deviation of its token
    embedding for text contexts."""
    moves: frozenset[str] = frozenset({"text", "image"})
    """Which features follow theta. The others are the same for all candidates, on an axis of 1."""
    known: np.ndarray | None = field(default=None, compare=False)
    """`(T, d)` float32 candidates to begin with, theta = 0 first: the whole templates of a prompt in words."""

    @property
    def width(self) -> int:
        """d / G, the entries of a part."""
        return self.dim // self.parts
