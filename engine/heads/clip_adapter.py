"""`clip-adapter`: CLIP-Adapter, a bottleneck network on image features.

Source: Gao et al. 2021, arXiv 2110.04544. Letters: as in `engine.heads`; K hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from engine.heads import Examples, Head, by_val_loss, validated
from engine.protocols import Array
from engine.random_streams import Purpose, rng

RATIOS = (0.2, 0.4, 0.6, 0.8)
STEPS, LOOKS, RATE = 200, 20, 1e-2
"""Adam steps for each ratio, how many of them are validated, and the initial learning rate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterHead(Head):
    """Image features pass through a bottleneck and are blended with themselves before they meet the text features."""

    kind: ClassVar[str] = "clip-adapter"
    shapes: ClassVar[Mapping[str, str]] = {"text": "CE", "down": "EK", "up": "KE"}

    text: Array
    """`(C, E)` float32."""
    down: Array
    """`(E, K)` float32, K = E // 4."""
    up: Array
    """`(K, E)` float32."""
    scale: float
    ratio: float
    """Share of the adapted features, in [0, 1]; 0 is zero-shot."""

    @classmethod
    def fit(cls, train: Examples, val: Examples, text: Array, scale: float, seed: int) -> AdapterHead:
        """Full-batch Adam with a cosine rate on a bottleneck of E // 4 units without biases.

        Ratio and stopping step are chosen on validation among `RATIOS` x `LOOKS`, zero-shot (ratio 0) included. The
        paper trains by SGD on augmented mini-batches, with ratio 0.2.

        Arguments are those of `engine.heads.fit`; `seed` draws the initial weights.
        """
        width = train[0].shape[1]
        hidden = max(width // 4, 1)
        noise = rng(seed, 0, Purpose.HEAD)
        sizes = (width, hidden), (hidden, width)
        start = [(noise.uniform(-1, 1, size) / np.sqrt(size[0])).astype(np.float32) for size in sizes]
        rows, labels = torch.from_numpy(train[0].astype(np.float32)), torch.from_numpy(train[1].astype(np.int64))
        words = torch.from_numpy(text.astype(np.float32))

        def look(layers: Sequence[Array], ratio: float) -> AdapterHead:
            down, up = (layer.copy() for layer in layers)
            return validated(cls(text=words.numpy(), scale=float(scale), down=down, up=up, ratio=ratio), val)

        best = look(start, 0.0)
        for ratio in RATIOS:
            layers = [torch.tensor(layer, requires_grad=True) for layer in start]
            adam = torch.optim.Adam(layers, lr=RATE)
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
            for step in range(1, STEPS + 1):
                adapted = ((rows @ layers[0]).relu() @ layers[1]).relu()
                logits = scale * normalize(ratio * adapted + (1 - ratio) * rows, dim=-1) @ words.T
                adam.zero_grad()
                cross_entropy(logits, labels).backward()
                adam.step()
                cosine.step()
                if step % (STEPS // LOOKS) == 0:
                    best = min(best, look([layer.detach().numpy() for layer in layers], ratio), key=by_val_loss)
        return best

    def scores(self, features: Array) -> Array:
        """Eqs. 5 and 8: `(n, E)` -> `(n, C)`."""
        adapted = np.maximum(np.maximum(features @ self.down, 0) @ self.up, 0)
        mixed = self.ratio * adapted + (1 - self.ratio) * features
        mixed = mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
        return (self.scale * (mixed @ self.text.T)).astype(np.float32)
