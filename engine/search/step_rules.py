"""From gradients to steps: optax's pair of `init` and `update`, in NumPy, composed by `chain`.

An update turns a gradient into a step and carries its memory in a `State`, a flat dict of arrays. **What leaves a chain
is subtracted from theta.** Schedules see the progress of the run in [0, 1], never a step count, so that they always fit
the budget.

    momentum rule   chain(Momentum(beta=0.9), Normalise(), Schedule(size=radius, shape="cosine"))
    ZIP             chain(ClipByNorm(limit=sqrt(d)), Schedule(size=a, shape="power", alpha=0.4, horizon=500))

Knows nothing of where a gradient comes from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.errors import RecipeError, nearest
from engine.protocols import Array

State = dict[str, Array]
"""An update's memory: what a checkpoint holds of it, as it is."""


class Update(Protocol):
    """A frozen dataclass with two pure functions."""

    def init(self, theta: Array) -> State: ...

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        """The step that is to be subtracted from theta, and the new state. All `(d,)` float64.

        Args:
            progress: share of the budget already spent, in [0, 1].
            loss: at theta, NaN where unknown; for rules that adapt to it.
        """
        ...


@dataclass(frozen=True)
class Chain:
    """Several updates, each given what the one before it returned."""

    updates: tuple[Update, ...]

    def init(self, theta: Array) -> State:
        return {f"{i}.{key}": v for i, each in enumerate(self.updates) for key, v in each.init(theta).items()}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        after: State = {}
        for i, each in enumerate(self.updates):
            mine = {key.split(".", 1)[1]: v for key, v in state.items() if key.split(".", 1)[0] == str(i)}
            gradient, mine = each.update(gradient, mine, theta, progress=progress, loss=loss)
            after |= {f"{i}.{key}": v for key, v in mine.items()}
        return gradient, after


def chain(*updates: Update) -> Chain:
    """Compose updates, first to last.

    Example:
        >>> import numpy as np
        >>> rule = chain(ClipByNorm(limit=1.0), Schedule(size=0.1))
        >>> step, _ = rule.update(np.array([3.0, 4.0]), rule.init(np.zeros(2)), np.zeros(2))
        >>> step.round(3).tolist()
        [0.06, 0.08]
    """
    return Chain(updates)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """m <- beta m + (1 - beta) g, returned as m / (1 - beta^t): an average of gradients, of their own size."""

    beta: float = 0.9

    def __post_init__(self) -> None:
        _check_beta("beta", self.beta)

    def init(self, theta: Array) -> State:
        return {"t": np.zeros(()), "m": np.zeros(len(theta))}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        t = state["t"] + 1
        m = self.beta * state["m"] + (1 - self.beta) * gradient
        return m / (1 - self.beta**t), {"t": np.asarray(t), "m": m}


@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """BlackVIP's gradient correction: m <- beta m + g (m_1 = g), returned as g + beta m.

    Nesterov's momentum written on the gradient. Not normalised by (1 - beta): with beta = 0.9 the step is about ten
    times the gradient's, and step sizes from the paper count on it.

    Source: Oh et al., BlackVIP, CVPR 2023, arXiv 2303.14773, as its code runs.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        _check_beta("beta", self.beta)

    def init(self, theta: Array) -> State:
        return {"m": np.zeros(len(theta))}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        m = self.beta * state["m"] + gradient
        return gradient + self.beta * m, {"m": m}


@dataclass(frozen=True, kw_only=True)
class HeavyBall:
    """m <- beta m + g, returned as m: Polyak's momentum, as SGD with `momentum` runs it."""

    beta: float = 0.9

    def __post_init__(self) -> None:
        # beta = 1 never forgets: SharpZO's released code runs so.
        if not 0 <= self.beta <= 1:
            raise RecipeError(f"beta={self.beta} is outside [0, 1]")

    def init(self, theta: Array) -> State:
        return {"m": np.zeros(len(theta))}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        m = self.beta * state["m"] + gradient
        return m, {"m": m}


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam, with coupled weight decay (added to the gradient, as torch.optim.Adam does).

    Source: Kingma and Ba, ICLR 2015, arXiv 1412.6980, algorithm 1.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_beta("beta1", self.beta1)
        _check_beta("beta2", self.beta2)

    def init(self, theta: Array) -> State:
        return {"t": np.zeros(()), "m": np.zeros(len(theta)), "v": np.zeros(len(theta))}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        gradient = gradient + self.weight_decay * theta
        t = state["t"] + 1
        m = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        step = m / (1 - self.beta1**t) / (np.sqrt(v / (1 - self.beta2**t)) + self.eps)
        return step, {"t": np.asarray(t), "m": m, "v": v}


# ---------------------------------------------------------------------------------------------------------------------
# Size


@dataclass(frozen=True, kw_only=True)
class ClipByNorm:
    """g min(1, limit / |g|)."""

    limit: float

    def init(self, theta: Array) -> State:
        return {}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        norm = float(np.linalg.norm(gradient))
        return (gradient * (self.limit / norm) if norm > self.limit else gradient), state


@dataclass(frozen=True)
class Normalise:
    """g / |g|; a zero gradient stays zero. One step size then fits every task."""

    def init(self, theta: Array) -> State:
        return {}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        norm = float(np.linalg.norm(gradient))
        return (gradient / norm if norm > 0 else gradient), state


SHAPES = ("constant", "cosine", "power")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Multiply by size times a shape of the run's progress p in [0, 1].

    constant 1; cosine from 1 to `floor`, (1 + cos(pi p)) / 2; power (1 + p horizon + offset)^-alpha: SPSA's decay as a
    run of `horizon` steps would see it, whatever the number of steps here.
    """

    size: float
    shape: str = "constant"
    floor: float = 0.0
    alpha: float = 0.4
    offset: float = 1.0
    horizon: float = 500.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            hint = nearest(self.shape, SHAPES)
            raise RecipeError(f"schedule {self.shape!r} is unknown{hint}; there are {', '.join(SHAPES)}")

    def at(self, progress: float) -> float:
        """The factor at this progress."""
        if self.shape == "cosine":
            return self.size * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))
        if self.shape == "power":
            return self.size * (1 + progress * self.horizon + self.offset) ** -self.alpha
        return self.size

    def init(self, theta: Array) -> State:
        return {}

    def update(
        self, gradient: Array, state: State, theta: Array, *, progress: float = 0.0, loss: float = math.nan
    ) -> tuple[Array, State]:
        return gradient * self.at(progress), state


def _check_beta(name: str, beta: float) -> None:
    if not 0 <= beta < 1:
        raise RecipeError(f"{name}={beta} is outside [0, 1)")
