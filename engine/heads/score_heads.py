"""Heads on scores, for boxes that give no features: a linear one, and CraFT's adapter.

`score-linear` is the anchored linear head on log-probabilities x `(n, C)`. `score-adapter` is a residual network,
r = x + relu(x W_1 + b_1) W_2 + b_2, with W_2 = 0 at the start: the box's own answer. It is trained on cross-entropy
plus `weight` times KL(softmax r, softmax x), which keeps it near that answer, by exact gradients written out in NumPy.

Source: Wang et al., CraFT, ICML 2024, arXiv 2402.04050 (C-256-C, Adam 1e-3). That it is residual is our reading.
Letters: n rows, C classes, K hidden units. Knows nothing of boxes and of how a prompt is searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import log_softmax

from engine.heads import Examples, Head, by_val_loss, validated
from engine.heads.linear import LinearHead, fit_linear
from engine.protocols import Array
from engine.random_streams import Purpose, rng
from engine.search.step_rules import Adam, State

HIDDEN = 256
RATE = 1e-3
WEIGHTS = (0.1, 1.0)
"""Weights of the KL term that validation chooses from."""
STEPS, LOOKS = 300, 20


def log_probabilities(scores: Array) -> Array:
    """`(..., C)` float64 log-softmax, as scores are known up to a constant per row."""
    return log_softmax(scores.astype(np.float64), axis=-1)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Shape and training of the network; its parameters are one flat vector `(p,)`."""

    classes: int
    hidden: int = HIDDEN
    rate: float = RATE
    weight: float = 1.0

    def begin(self, seed: int) -> Array:
        """`(p,)` initial parameters, which leave the box's answer as it is."""
        into = rng(seed, 0, Purpose.HEAD).normal(size=(self.classes, self.hidden)) / np.sqrt(self.classes)
        return np.concatenate([into.ravel(), np.zeros(self.hidden + self.hidden * self.classes + self.classes)])

    def memory(self, parameters: Array) -> State:
        """The state of Adam before its first step."""
        return Adam().init(parameters)

    def refine(self, parameters: Array, x: Array) -> Array:
        """`(..., C)` log-probabilities -> `(..., C)` refined logits."""
        into, bias, out, offset = self.split(parameters)
        return x + np.maximum(x @ into + bias, 0) @ out + offset

    def step(self, parameters: Array, memory: State, x: Array, labels: Array) -> tuple[Array, State]:
        """Parameters and optimiser state after an Adam step on `(n, C)` log-probabilities and `(n,)` labels."""
        into, bias, out, _ = self.split(parameters)
        hidden = x @ into + bias
        active = np.maximum(hidden, 0)
        log_q = log_probabilities(self.refine(parameters, x))
        q, rows = np.exp(log_q), len(x)
        apart = log_q - x
        # d CE / d r = q - onehot;  d KL(q, p) / d r = q (log q - log p - KL)
        slope = q + self.weight * q * (apart - (q * apart).sum(-1, keepdims=True))
        slope[np.arange(rows), labels] -= 1
        slope /= rows
        back = (slope @ out.T) * (hidden > 0)
        gradient = np.concatenate([(x.T @ back).ravel(), back.sum(0), (active.T @ slope).ravel(), slope.sum(0)])
        change, memory = Adam().update(gradient, memory, parameters)
        return parameters - self.rate * change, memory

    def loss(self, parameters: Array, x: Array, labels: Array) -> float:
        """Cross-entropy plus weight times KL on `(n, C)` log-probabilities and `(n,)` labels, nats."""
        log_q = log_probabilities(self.refine(parameters, x))
        kept = (np.exp(log_q) * (log_q - x)).sum(-1)
        return float((self.weight * kept - log_q[np.arange(len(x)), labels]).mean())

    def split(self, parameters: Array) -> tuple[Array, Array, Array, Array]:
        """W_1 `(C, K)`, b_1 `(K,)`, W_2 `(K, C)`, b_2 `(C,)`."""
        size = self.classes * self.hidden
        into, bias, out, offset = np.split(parameters, np.cumsum([size, self.hidden, size]))
        return into.reshape(self.classes, -1), bias, out.reshape(-1, self.classes), offset


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreAdapterHead(Head):
    """The trained network, applied to a box's scores."""

    kind: ClassVar[str] = "score-adapter"
    shapes: ClassVar[Mapping[str, str]] = {"into": "CK", "bias": "K", "out": "KC", "offset": "C"}

    into: Array
    """`(C, K)` float32."""
    bias: Array
    """`(K,)` float32."""
    out: Array
    """`(K, C)` float32."""
    offset: Array
    """`(C,)` float32."""
    weight: float
    """Of the KL term, chosen on validation."""

    @classmethod
    def fit(
        cls, train: Examples, val: Examples, text: None = None, scale: float = 1.0, seed: int = 1
    ) -> ScoreAdapterHead:
        """The adapter on fixed scores: full-batch Adam, its KL weight and stopping step chosen on validation.

        `train` and `val` are scores `(n, C)` and labels `(n,)`; `text` and `scale` are not used; `seed` draws the
        initial weights.
        """
        x, labels = log_probabilities(train[0]), train[1]

        def look(network: Adapter, parameters: Array) -> ScoreAdapterHead:
            into, bias, out, offset = (part.astype(np.float32) for part in network.split(parameters))
            return validated(cls(into=into, bias=bias, out=out, offset=offset, weight=network.weight), val)

        networks = [Adapter(classes=x.shape[1], weight=weight) for weight in WEIGHTS]
        best = look(networks[0], networks[0].begin(seed))
        for network in networks:
            parameters = network.begin(seed)
            memory = network.memory(parameters)
            for step in range(1, STEPS + 1):
                parameters, memory = network.step(parameters, memory, x, labels)
                if step % (STEPS // LOOKS) == 0:
                    best = min(best, look(network, parameters), key=by_val_loss)
        return best

    def scores(self, features: Array) -> Array:
        """`(n, C)` scores of the box -> `(n, C)` float32 logits."""
        x = log_probabilities(features)
        return (x + np.maximum(x @ self.into + self.bias, 0) @ self.out + self.offset).astype(np.float32)


def fit_score_linear(
    train: Examples, val: Examples, text: None = None, scale: float = 1.0, seed: int = 1
) -> LinearHead:
    """The zero-shot-anchored linear head: log-probabilities are its features and their own anchor.

    `train` and `val` are scores `(n, C)` and labels `(n,)`; the other arguments are not used.
    """
    # `inputs` gives `scores` log-probabilities too: they do not depend on a row's constant.
    own, other = ((log_probabilities(scores).astype(np.float32), labels) for scores, labels in (train, val))
    return fit_linear(own, other, np.eye(own[0].shape[1], dtype=np.float32), 1.0)
