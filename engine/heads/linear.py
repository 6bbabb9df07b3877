"""`linear` and `linear-anchored`: multinomial logistic regression, by itself or held near zero-shot.

Letters: as in `engine.heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from engine.core import Array
from engine.heads import Examples, arrays_of, by_val_loss, validated

STRENGTHS = tuple(float(10.0**half) for half in np.arange(-2.0, 4.5, 0.5))
"""Inverse regularisation C, for features centred and scaled to unit mean square norm; the strongest penalty first."""
PATIENCE = 3
"""The grid is left when so many settings in a row are worse on validation than the one before."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """`features @ weight.T + bias`: what `linear`, `gda` and `score-linear` come down to."""

    kind: ClassVar[str] = "linear"
    shapes: ClassVar[Mapping[str, str]] = {"weight": "CE", "bias": "C"}

    weight: Array
    """`(C, E)` float32."""
    bias: Array
    """`(C,)` float32."""
    chosen: float
    """The setting that validation chose: C of `linear`, the weight of the Gaussian part of `gda`."""
    val_loss: float = math.nan

    @classmethod
    def of(cls, weight: Array, bias: Array, *, chosen: float) -> LinearHead:
        """From weights of any precision."""
        return cls(weight=weight.astype(np.float32), bias=bias.astype(np.float32), chosen=chosen)

    @classmethod
    def fit(cls, train: Examples, val: Examples, text: Array | None, scale: float, seed: int) -> LinearHead:
        """Logistic regression on features alone: `text`, `scale` and `seed` are not used. See `fit_linear`."""
        return fit_linear(train, val)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def scores(self, features: Array) -> Array:
        return features @ self.weight.T + self.bias

    def state_dict(self) -> dict[str, Array]:
        return arrays_of(self)


def fit_anchored(train: Examples, val: Examples, text: Array, scale: float, seed: int = 1) -> LinearHead:
    """Logistic regression held near zero-shot; `seed` is not used. See `fit_linear`."""
    return fit_linear(train, val, text, scale)


def fit_linear(
    train: Examples,
    val: Examples,
    text: Array | None = None,
    scale: float = 100.0,
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
        val: The same of the validation rows.
        text: `(C, E)` text features, for the anchored variant.
        scale: what a cosine is multiplied by to make a logit.
        strengths: the grid of C, ascending.
    """
    train_features, train_labels = train
    num_classes = len(text) if text is not None else int(train_labels.max()) + 1
    mean = train_features.mean(0, dtype=np.float64)
    spread = float(np.sqrt(((train_features - mean) ** 2).sum(1).mean())) or 1.0
    rows = torch.from_numpy((train_features - mean) / spread)
    labels = torch.from_numpy(train_labels.astype(np.int64))
    shape = (num_classes, rows.shape[1])
    anchor = torch.from_numpy(np.zeros(shape) if text is None else text.astype(np.float64) * scale)
    cosines = torch.from_numpy(train_features.astype(np.float64)) @ anchor.T
    weight, bias = torch.zeros(shape, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    gain = torch.ones(num_classes, dtype=torch.float64)
    parameters = [weight, bias] if text is None else [weight, bias, gain]
    for parameter in parameters:
        parameter.requires_grad_()

    def head(strength: float) -> LinearHead:
        turned = weight.detach().numpy() / spread
        full = turned + (gain.detach()[:, None] * anchor).numpy()
        return validated(LinearHead.of(full, bias.detach().numpy() - turned @ mean, chosen=strength), val)

    heads = [] if text is None else [head(0.0)]
    for strength in strengths:
        # From strong to weak regularisation, each from the solution before: a warm start.
        solver = torch.optim.LBFGS(
            parameters, max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss(solver: torch.optim.LBFGS = solver, strength: float = strength) -> Any:
            solver.zero_grad()
            penalty = weight.square().sum()
            if text is not None:
                penalty = penalty + bias.square().sum() + (gain - 1).square().sum()
            value = cross_entropy(rows @ weight.T + bias + cosines * gain, labels)
            value = value + penalty / (2 * strength * len(labels))
            value.backward()
            return value

        solver.step(loss)
        heads.append(head(float(strength)))
        if len(heads) > PATIENCE and min(heads[-PATIENCE:], key=by_val_loss).val_loss > heads[-PATIENCE - 1].val_loss:
            # Over-fitting from here on, and the weakest regularisation is the slowest to solve.
            break
    return min(heads, key=by_val_loss)
