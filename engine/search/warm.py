"""Warm start: any search, moved so that it begins at a given theta instead of at the template.

Knows nothing of where that theta came from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.protocols import Array, Feedback, Search


class Warm:
    """A search in coordinates around `origin`: what it takes for theta = 0 is `origin`.

    Args:
        search: a fresh search of the same dimension.
        origin: `(d,)` float32, where it begins.
    """

    def __init__(self, search: Search, origin: Array) -> None:
        self.search = search
        self.origin = np.asarray(origin, np.float32)
        self._asked = np.zeros((0, len(self.origin)), np.float32)

    def ask(self, limit: int) -> Array:
        """`(P, d)` candidates in the coordinates of the prompt."""
        self._asked = np.asarray(self.search.ask(limit), np.float32)
        return self._asked + self.origin

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        """Answers to the last `ask`."""
        self.search.tell(self._asked, feedback)

    def recommend(self) -> Array:
        """`(d,)` in the coordinates of the prompt."""
        return np.asarray(self.search.recommend(), np.float32) + self.origin

    def state_dict(self) -> dict[str, Any]:
        """The state of the search inside; the origin belongs to the recipe."""
        return self.search.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.search.load_state_dict(state)
