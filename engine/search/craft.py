"""`craft`: CMA-ES on a random projection, in turn with an adapter on the scores that is trained by exact gradients.

Knows nothing of what theta means, nor of which box gave the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from engine.checkpoint import Like, arrays_like, whole_number
from engine.errors import ArtifactError, RefusedError
from engine.heads.score_heads import HIDDEN, RATE, Adapter, log_probabilities
from engine.protocols import Array, Feedback, Needs, Prefers
from engine.search.sharpzo import full_cma, worst_last
from engine.search_space import Space
from engine.settings import MANY, Count, Population, Positive, Range, Weight, check
from engine.tuning_loop import SearchMethod


@dataclass(frozen=True, kw_only=True)
class Craft(SearchMethod):
    """CraFT: evolution (CMA-ES) together with a trained adapter.

    CraFT: CMA-ES on what an adapter makes of a candidate's scores; after each generation the adapter is trained.

    Wang et al., CraFT, ICML 2024, arXiv 2402.04050: a candidate's loss is CE(r, y) + weight KL(r, x), with x its scores
    and r what the adapter (C-256-C, engine/score_heads.py) makes of them; then Adam on the adapter, on the scores of
    the generation's best. The classifier that is deployed is a prompt with an adapter on it: the head `score-adapter`,
    fitted to the selected prompt's scores. Text prompts take its Gaussian projection unless told otherwise: a quarter
    of the dimensions, as 512 are of four tokens.
    """

    popsize: Population = 40
    sigma: Positive = 0.4
    """Initial standard deviation, in units of theta; the paper sets it by data set."""
    weight: Weight = 1.0
    """Of the KL term; the paper's is by data set."""
    hidden: Count = HIDDEN
    rate: Weight = RATE
    """Of Adam on the adapter."""
    steps: Annotated[int, Range(0, MANY)] = 5
    """Of Adam, a generation: one epoch of the paper's mini-batches at 160 images. 0: no adapter, as in BBT."""

    needs = Needs(table=True)
    prefers = Prefers(subspace="random:1/4", head="score-adapter")

    def __post_init__(self) -> None:
        check(self)

    def start(self, space: Space, candidates: float, seed: int) -> CraftSearch:
        return CraftSearch(self, space.dim, seed)


class CraftSearch:
    """The running half of `Craft`. CMA is restored by telling it the losses again; the adapter is kept as it is."""

    def __init__(self, method: Craft, dim: int, seed: int) -> None:
        self._method, self._dim, self._seed = method, dim, seed
        self._begin()

    def _begin(self) -> None:
        self._cma = full_cma(self._dim, self._method.sigma, self._method.popsize, self._seed)
        self._queue: list[Array] = []
        """The generation that is being evaluated; empty before theta = 0 was."""
        self._losses: list[float] = []
        """All that CMA was or will be told, the present generation's last."""
        self._adapter: Adapter | None = None
        self._parameters, self._memory = np.zeros(0), Adapter(classes=1).memory(np.zeros(0))
        self._best = math.inf, np.zeros(self._dim, np.float32)
        self._table = np.zeros((0, 1)), np.zeros(0, np.int64)
        """Log-probabilities and labels of the generation's best, on which the adapter is trained."""
        self._recommended = np.zeros(self._dim, np.float32)

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        if not self._queue:
            return np.zeros((1, self._dim), np.float32)
        waiting = self._queue[len(self._losses) % self._method.popsize :]
        return np.stack(waiting[:limit]).astype(np.float32)

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        if feedback.outputs is None or feedback.labels is None:
            raise RefusedError("craft trains an adapter on scores: it needs the box's outputs and the labels")
        told = log_probabilities(feedback.outputs.logits())
        if self._adapter is None:
            method = self._method
            self._adapter = Adapter(
                classes=told.shape[-1], hidden=method.hidden, rate=method.rate, weight=method.weight
            )
            self._parameters = self._adapter.begin(self._seed)
            self._memory = self._adapter.memory(self._parameters)
        first = not self._queue
        for theta, loss, table in zip(thetas, feedback.losses, told, strict=True):
            value = math.nan
            if np.isfinite(loss):
                value = self._adapter.loss(self._parameters, table, feedback.labels)
                if value < self._best[0]:
                    self._best = value, np.array(theta, np.float32)
                    self._table = table, np.array(feedback.labels)
            if not first:
                self._losses.append(value)
        if first:
            self._next()
        elif len(self._losses) % self._method.popsize == 0:
            self._close(self._losses[-self._method.popsize :])
            self._train()

    def _next(self) -> None:
        self._queue = [np.array(sample) for sample in self._cma.ask()]

    def _close(self, losses: list[float]) -> None:
        """Tell CMA a generation and draw the next."""
        self._cma.tell(self._queue, worst_last(np.array(losses)))
        self._next()

    def _train(self) -> None:
        """After a generation: its best is what is recommended, and what the adapter learns from."""
        assert self._adapter is not None
        if math.isfinite(self._best[0]):
            self._recommended = self._best[1]
            for _ in range(self._method.steps):
                self._parameters, self._memory = self._adapter.step(self._parameters, self._memory, *self._table)
        self._best = math.inf, self._recommended

    def recommend(self) -> Array:
        return self._recommended.copy()

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": np.array(self._losses),
            "begun": int(bool(self._queue)),
            "classes": 0 if self._adapter is None else self._adapter.classes,
            "parameters": self._parameters.copy(),
            **{f"adam.{key}": np.array(value) for key, value in self._memory.items()},
            "best_loss": np.array(self._best[0]),
            "best_theta": self._best[1].copy(),
            "table": self._table[0].copy(),
            "labels": self._table[1].copy(),
            "recommended": self._recommended.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        method, theta, parameters = self._method, Like("float32", (self._dim,)), Like("float64", (None,))
        told = arrays_like(
            state,
            {
                "losses": Like("float64", (None,), finite=False),
                "parameters": parameters,
                "adam.t": Like("float64", ()),
                "adam.m": parameters,
                "adam.v": parameters,
                "best_loss": Like("float64", (), finite=False),
                "best_theta": theta,
                "table": Like("float64", (None, None), finite=False),
                "labels": Like("int64", (None,)),
                "recommended": theta,
            },
            besides=["begun", "classes"],
        )
        classes = whole_number(state["classes"], "classes")
        size = classes * (2 * method.hidden + 1) + method.hidden if classes else 0
        memory = {key: told[f"adam.{key}"] for key in ("t", "m", "v")}
        table, labels = told["table"], told["labels"]
        if {len(told["parameters"]), len(memory["m"]), len(memory["v"])} != {size}:
            raise ArtifactError(f"its adapter is not one of {classes} classes and {method.hidden} hidden units")
        if len(table) != len(labels) or (len(labels) and not (labels.min() >= 0 and labels.max() < classes)):
            raise ArtifactError("its table of answers has other rows or classes than its labels")
        if len(table) and table.shape[1] != classes:
            raise ArtifactError(f"its table of answers has {table.shape[1]} columns for {classes} classes")
        self._begin()
        losses = told["losses"].tolist()
        if whole_number(state["begun"], "begun", most=1):
            self._next()
        for first in range(0, len(losses) - method.popsize + 1, method.popsize):
            self._close(losses[first : first + method.popsize])
        self._losses = losses
        if classes:
            self._adapter = Adapter(classes=classes, hidden=method.hidden, rate=method.rate, weight=method.weight)
        self._parameters, self._memory, self._table = told["parameters"], memory, (table, labels)
        self._best = float(told["best_loss"]), told["best_theta"]
        self._recommended = told["recommended"]
