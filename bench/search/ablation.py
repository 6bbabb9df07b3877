"""`keyhole bench search --ablation`: where `sketch` has its gain from, by taking out one part at a time.

Each is a method like any user's, the shipped search with one thing changed, so that probes, trust region and account
stay the same. They lean on its insides: `SketchSearch._solve` calling `solve` of its module, and `_directions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from bench.search.arms import Arm
from engine.protocols import Array, Feedback, Outputs, Reply, Search
from engine.search.sketch import search as sketch
from engine.search.sketch.search import Sketch, SketchSearch
from engine.search.sketch.solver import Paid, mean_loss
from engine.search.sketch.tables import Table
from engine.search_space import Space
from engine.session import Session

NUDGE = 0.02
"""Of one entry of theta, for the true Jacobian by finite differences."""


def arms() -> list[Arm]:
    """The search, whole and in parts."""
    return [
        Arm(label="sketch", method="sketch"),
        Arm(label="gradient steps on the table", method="bench.search.ablation:GradientSteps"),
        Arm(label="losses only", method="bench.search.ablation:LossesOnly"),
        Arm(label="no memory", method="sketch", options={"memory": Sketch().k}),
        Arm(label="true leading directions (white box)", method="bench.search.ablation:TrueDirections"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The table, but only its slope


@dataclass(frozen=True, kw_only=True)
class GradientSteps(Sketch):
    """sketch with steps along the gradient, as the table and the known loss on it give it: no curvature."""

    def start(self, space: Space, candidates: float, seed: int) -> SketchSearch:
        return _GradientSearch(self, space, candidates, seed)


class _GradientSearch(SketchSearch):
    def _solve(self) -> None:
        solve, sketch.solve = sketch.solve, _gradient_step
        try:
            super()._solve()
        finally:
            sketch.solve = solve


def _gradient_step(table: Table, labels: Array, mix: Array, paid: Paid, start: Array | None = None) -> Array:
    """As `solver.solve`, the loss on the table replaced by its tangent plane at a = 0."""
    parts, num, memory = mix.shape
    _, by_weights = mean_loss(table, labels, np.zeros((parts, memory)))
    slope = np.matmul(mix, by_weights[..., None])[..., 0].ravel()
    # What is paid is quadratic: its gradients at zero and at the unit steps are all of it.
    first = paid(np.zeros((parts, num)))[1].ravel()
    curved = np.stack([paid(unit.reshape(parts, num))[1].ravel() - first for unit in np.eye(parts * num)])
    return -np.linalg.solve(curved, slope + first).reshape(parts, num)


# ---------------------------------------------------------------------------------------------------------------------
# Not the table, but its mean loss


@dataclass(frozen=True, kw_only=True)
class LossesOnly(Sketch):
    """sketch that is told one number a candidate, as every scalar rule is.

    One number does not fall into classes, so neither does theta.
    """

    def start(self, space: Space, candidates: float, seed: int) -> SketchSearch:
        return _LossSearch(self, replace(space, parts=1), candidates, seed)


class _LossSearch(SketchSearch):
    def tell(self, thetas: Array, feedback: Feedback) -> None:
        # A table of one row and two classes, whose cross-entropy is the loss: softplus(score of the wrong class).
        loss = np.maximum(feedback.losses, 1e-12)
        wrong = loss + np.log(-np.expm1(-loss))
        scores = np.stack([np.zeros_like(wrong), wrong], -1)[:, None].astype(np.float32)
        super().tell(thetas, replace(feedback, outputs=Outputs(scores=scores), labels=np.zeros(1, np.int64)))


# ---------------------------------------------------------------------------------------------------------------------
# The limit: the best directions there are


@dataclass(frozen=True, kw_only=True)
class TrueDirections(Sketch):
    """sketch that probes along the gradient and the leading directions of curvature of the true map, at no cost.

    Those of sum_nc p_nc (1 - p_nc) J_nc^T J_nc, with J_nc the true derivative of a score by its class's own context (by
    the context of all, where there is one): the right singular directions of the Jacobian, each score weighed as the
    loss weighs it.
    """

    def start(self, space: Space, candidates: float, seed: int) -> SketchSearch:
        return _InformedSearch(self, space, candidates, seed)

    def begin(self, session: Session) -> Search:
        """The search, with the box shown to it: what it asks there is on nobody's account."""
        begun: Any = super().begin(session)
        begun.look_inside(partial(session.evaluator.evaluate, table=True), session.task.train.labels)
        return begun


class _InformedSearch(SketchSearch):
    _evaluate: Callable[[Array], Reply] | None = None
    """Of a search without a session, which only shows how many candidates it would ask for: sketch's directions."""

    def look_inside(self, evaluate: Callable[[Array], Reply], labels: Array) -> None:
        """Be shown the box, as training candidates are evaluated on it."""
        self._evaluate, self._truth = evaluate, labels

    def _directions(self, count: int) -> Array:
        if self._evaluate is None:
            return super()._directions(count)
        theta = self.recommend()
        # Every class is moved at once: its scores follow its own part alone.
        nudged = theta + NUDGE * np.tile(np.eye(self._width, dtype=np.float32), self._parts)
        outputs: Any = self._evaluate(np.concatenate([theta[None], nudged])).outputs
        scores = outputs.logits().astype(np.float64)
        slopes = ((scores[1:] - scores[0]) / NUDGE).reshape(self._width, -1)
        shares = softmax(scores[0], axis=-1)
        leading = np.linalg.eigh((slopes * (shares * (1 - shares)).ravel()) @ slopes.T)[1][:, ::-1]
        gradient = slopes @ (shares - np.eye(shares.shape[1])[self._truth]).ravel()
        Q, R = np.linalg.qr(np.concatenate([gradient[:, None], leading[:, : count - 1]], axis=1))
        return (Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)).T
