"""`tip`: Tip-Adapter, a cache of the training images that votes by similarity, without training.

Source: Zhang et al. 2022, arXiv 2111.03930. Letters: as in `engine.heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.heads import Examples, Head, by_val_loss, validated
from engine.protocols import Array

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHARPNESS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""The grid of alpha and beta that validation chooses from, and alpha = 0, which is zero-shot."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheHead(Head):
    """Zero-shot logits plus votes of the training images, weighted by their similarity to the image.

    It holds the features and labels of the training images.
    """

    kind: ClassVar[str] = "tip"
    shapes: ClassVar[Mapping[str, str]] = {"text": "CE", "keys": "nE", "labels": "n"}

    text: Array
    """`(C, E)` float32."""
    keys: Array
    """`(n, E)` float32 features of the training images."""
    labels: Array
    """`(n,)` int64."""
    scale: float
    alpha: float
    """Weight of the votes."""
    beta: float
    """Sharpness of the similarity."""

    @classmethod
    def fit(cls, train: Examples, val: Examples, text: Array, scale: float, seed: int = 1) -> CacheHead:
        """Tip-Adapter, not fine-tuned; alpha and beta from a grid.

        The paper's keys are averages over ten augmented views; ours are the one evaluation view that the box answered.

        Arguments are those of `engine.heads.fit`; `seed` is not used.
        """
        rows, labels, words = train[0].astype(np.float32), train[1].astype(np.int64), text.astype(np.float32)
        grid = [(0.0, SHARPNESS[0]), *((alpha, beta) for beta in SHARPNESS for alpha in WEIGHTS)]
        tried = (
            cls(text=words, keys=rows, labels=labels, scale=float(scale), alpha=alpha, beta=beta)
            for alpha, beta in grid
        )
        return min((validated(head, val) for head in tried), key=by_val_loss)

    def scores(self, features: Array) -> Array:
        """Eqs. 3-5: A = exp(-beta (1 - f F^T)), logits = alpha A L + f W^T; `(n, E)` -> `(n, C)`."""
        affinity = np.exp(-self.beta * (1.0 - features @ self.keys.T))
        votes = affinity @ np.eye(len(self.text), dtype=np.float32)[self.labels]
        return (self.scale * (features @ self.text.T) + self.alpha * votes).astype(np.float32)
