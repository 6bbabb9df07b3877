"""`linear` and `linear-anchored`: multinomial logistic regression, by itself or held near zero-shot.

Letters: as in `engine.heads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from engine.heads import Examples, Head, by_val_loss, validated
from engine.protocols import Array

STRENGTHS = tuple(float(10.0**half) for half in np.arange(-2.0, 4.5, 0.5))
"""Inverse regularisation C, for features centred and scaled to unit mean square norm; the strongest penalty first."""
PATIENCE = 3
"""The grid is left when so many settings in a row are worse on validation than the one before."""
SOLVER = {"maxcor": 60, "maxiter": 500, "maxfun": 1000, "ftol": 1e-12, "gtol": 1e-7}
"""Of L-BFGS. The anchored problem is ill-conditioned: zero-shot logits are tens of times larger than the rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead(Head):
    """`features @ weight.T + bias`: what `linear`, `gda` and `score-linear` come down to."""

    kind: ClassVar[str] = "linear"
    shapes: ClassVar[Mapping[str, str]] = {"weight": "CE", "bias": "C"}

    weight: Array
    """`(C, E)` float32."""
    bias: Array
    """`(C,)` float32."""
    chosen: float
    """The setting that validation chose: C of `linear`, the weight of the Gaussian part of `gda`."""

    @classmethod
    def of(cls, weight: Array, bias: Array, *, chosen: float) -> LinearHead:
        """From weights of any precision."""
        return cls(weight=weight.astype(np.float32), bias=bias.astype(np.float32), chosen=chosen)

    @classmethod
    def fit(cls, train: Examples, val: Examples, text: Array | None, scale: float, seed: int) -> LinearHead:
        """`fit_linear` on features alone: `text`, `scale` and `seed` are not used."""
        return fit_linear(train, val)

    def scores(self, features: Array) -> Array:
        """`(n, E)` -> `(n, C)` logits."""
        return features @ self.weight.T + self.bias


def fit_linear(
    train: Examples,
    val: Examples,
    text: Array | None = None,
    scale: float = 100.0,
    seed: int = 1,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearHead:
    """Multinomial logistic regression, its regularisation chosen on validation.

    Minimises `C * sum cross-entropy + |V|^2 / 2` over `x V^T + b`, x being features centred and scaled to unit mean
    square norm, so that one grid of C serves every box.

    With `text`, the zero-shot-anchored variant: the logits are `scale * a_c (f . t_c) + x . v_c + b_c` with a
    multiplier a_c a class, as in LP++ (Huang et al. 2024, arXiv 2404.02285), and `|V|^2 + |b|^2 + |a - 1|^2` is
    penalised; C = 0, which is zero-shot itself, is in the grid. LP++ starts from class means and stops early instead;
    a penalty makes the answer independent of the number of steps.

    Args:
        train: Features `(n, E)` and labels `(n,)`; every class occurs.
        val: The same for the validation rows.
        text: `(C, E)` text features, for the anchored variant.
        scale: Factor from a cosine to a logit.
        seed: Not used.
        strengths: The grid of C, ascending.
    """
    features, labels = train[0].astype(np.float64), train[1]
    num_classes = len(text) if text is not None else int(labels.max()) + 1
    mean = features.mean(0)
    spread = float(np.sqrt(((features - mean) ** 2).sum(1).mean())) or 1.0
    problem = _Problem(
        rows=(features - mean) / spread,
        cosines=None if text is None else scale * features @ text.astype(np.float64).T,
        targets=np.eye(num_classes)[labels],
    )

    def head(found: Array, strength: float) -> LinearHead:
        weight, bias, gain = problem.split(found)
        turned = weight / spread
        full = turned if text is None else turned + (scale * (1 + gain))[:, None] * text
        return validated(LinearHead.of(full, bias - turned @ mean, chosen=strength), val)

    found = np.zeros(problem.size)
    heads = [] if text is None else [head(found, 0.0)]
    for strength in strengths:
        # From strong to weak regularisation, each from the solution before: a warm start.
        found = minimize(problem.loss, found, (strength,), jac=True, method="L-BFGS-B", options=SOLVER).x
        heads.append(head(found, float(strength)))
        if len(heads) > PATIENCE and min(heads[-PATIENCE:], key=by_val_loss).val_loss > heads[-PATIENCE - 1].val_loss:
            # Over-fitting from here on, and the weakest regularisation is the slowest to solve.
            break
    return min(heads, key=by_val_loss)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """What is minimised. Parameters are one vector: V `(C, E)`, b `(C,)` and, where there are cosines, a - 1 `(C,)`."""

    rows: Array
    """`(n, E)` float64."""
    cosines: Array | None
    """`(n, C)` zero-shot logits; None: not anchored."""
    targets: Array
    """`(n, C)` the label's unit vector."""

    @property
    def size(self) -> int:
        return self.targets.shape[1] * (self.rows.shape[1] + (1 if self.cosines is None else 2))

    def split(self, parameters: Array) -> tuple[Array, Array, Array]:
        """V, b and a - 1, which is empty where there is no anchor."""
        num_classes, width = self.targets.shape[1], self.rows.shape[1]
        weight, bias, gain = np.split(parameters, np.array([width, width + 1]) * num_classes)
        return weight.reshape(num_classes, width), bias, gain

    def loss(self, parameters: Array, strength: float) -> tuple[float, Array]:
        """Mean cross-entropy and penalty / (2 C n), and its gradient by the parameters."""
        weight, bias, gain = self.split(parameters)
        logits, penalised = self.rows @ weight.T + bias, parameters.copy()
        if self.cosines is None:
            penalised[weight.size :] = 0  # the bias is free
        else:
            logits += self.cosines * (1 + gain)
        log_p, n = log_softmax(logits, axis=-1), len(logits)
        slope = (np.exp(log_p) - self.targets) / n
        slopes = [(slope.T @ self.rows).ravel(), slope.sum(0)]
        if self.cosines is not None:
            slopes.append((slope * self.cosines).sum(0))
        loss = penalised @ penalised / (2 * strength * n) - np.vdot(self.targets, log_p) / n
        return float(loss), np.concatenate(slopes) + penalised / (strength * n)
