"""Descent on estimated gradients: an estimator and an update put together, and `momentum`, our scalar rule.

Each round asks for the current theta and its probes in one batch, so that what tells us whether the last step was good
is also the base of the next differences. What is asked is a pure function of (state, limit), and the noise of (seed,
step), so that a search restored from its state asks and answers to the same bits.

Knows nothing of what theta means, nor of who evaluates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.checkpoint import Like, arrays_like, number, whole_number
from engine.errors import RecipeError, nearest
from engine.protocols import Array, Feedback, Needs
from engine.random_streams import Purpose, rng
from engine.search.gradient_estimators import Estimator, OneSided, Pairs
from engine.search.step_rules import Momentum as NormalisedMomentum
from engine.search.step_rules import Normalise, Schedule, Update, chain
from engine.search_space import Space
from engine.settings import Count, Positive, ShareBelowOne, check
from engine.tuning_loop import SearchMethod

LOSSES = frozenset({"topk", "scores", "features"})
"""What a method can live on that takes differences of losses: the error rate of labels is flat nearly everywhere."""
REPEATS = 8
"""Rounds in which theta is evaluated twice, where the second answer differed from the first."""
FADE = 0.9
"""Weight of the past in the running mean square of probe differences."""


@dataclass(frozen=True, kw_only=True)
class Descent(SearchMethod):
    """A search method made of an estimator and an update.

    Rules:
        - A round is [theta, theta + probes], or [theta + probes] where the estimator does not use its base (theta = 0
          is then asked once, first). Where fewer evaluations are left, fewer probes are asked.
        - A probe whose loss is NaN is left out of the estimate. If theta's own is NaN, no step is taken but the last
          one is halved.
        - `unit`: one unit of theta in the units of the update and of the estimator's paper. A rule with raw step
          sizes runs on w = unit * theta; `unit = 1` means that its sizes are in units of theta.

    Example:
        >>> import numpy as np
        >>> method = Descent(estimator=OneSided(k=2, h=0.01), update=Schedule(size=0.05))
        >>> search = method.start(Space(dim=3), candidates=60, seed=1)
        >>> for _ in range(20):
        ...     thetas = search.ask(limit=3)
        ...     search.tell(thetas, Feedback(losses=((thetas - 1.0) ** 2).sum(1).astype(float)))
        >>> bool(np.abs(search.recommend() - 1.0).max() < 0.4)
        True
    """

    estimator: Estimator
    update: Update
    probe: Schedule = field(default_factory=lambda: Schedule(size=1.0))
    """What the estimator's h is multiplied by as the run goes on."""
    unit: float = 1.0
    fallback: Estimator | None = None
    """Taken over from `estimator` (for good) when the noise of a repeated base exceeds the signal of the probes."""
    recommend: str = "best"
    """`best`: the theta of lowest loss among those asked as a base, or the current one while there is none or where
    answers are noisy; `last`: always the current one."""

    needs = Needs(gives=LOSSES)

    def __post_init__(self) -> None:
        if self.recommend not in ("best", "last"):
            raise RecipeError(f"recommend={self.recommend!r} is unknown; give 'best' or 'last'")
        if not (self.unit > 0 and math.isfinite(self.unit)):
            raise RecipeError(f"unit={self.unit} is no size of theta; give a positive number")

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        """A search from theta = 0; schedules run to their end with so many candidates."""
        return DescentSearch(self, space.dim, candidates, seed)


class DescentSearch:
    """The running half of `Descent`."""

    def __init__(self, method: Descent, dim: int, candidates: float, seed: int) -> None:
        self._method, self._dim, self._candidates, self._seed = method, dim, candidates, seed
        self._theta = np.zeros(dim)
        self._moved = np.zeros(dim)
        """The last step taken, for taking half of it back."""
        self._memory = method.update.init(self._theta)
        self._step = 0
        self._spent = 0
        self._best_theta, self._best_loss = np.zeros(dim), math.inf
        # Mean squares: of the noise of an answer, from repeats; of the probes' differences, running.
        self._repeats, self._noise, self._signal = 0, 0.0, math.nan
        self._noisy = False

    def ask(self, limit: int) -> Array:
        base, repeat, probes = self._plan(limit)
        rows = [self._theta[None]] * (base + repeat) + [self._theta + probes]
        return np.concatenate(rows).astype(np.float32)

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        losses = np.asarray(feedback.losses, dtype=np.float64)
        base, repeat, probes = self._plan(len(losses))
        progress = self._progress
        self._spent += len(losses)
        self._step += 1
        loss = float(losses[0]) if base else math.nan
        told = np.concatenate([[loss], losses[base + repeat :]])
        told = np.where(np.isfinite(told), told, np.nan)
        loss = float(told[0])
        if base and math.isnan(loss):
            self._moved = self._moved / 2
            self._theta = self._theta - self._moved
            return
        if loss < self._best_loss:
            self._best_theta, self._best_loss = self._theta.copy(), loss
        if self._method.fallback is not None and not self._noisy:
            self._listen(told, float(losses[1]) if repeat else None)
        if not len(probes):
            return
        estimator = self._estimator(progress)
        gradient = estimator.gradient(self._theta, probes, told) / self._method.unit
        if not np.isfinite(gradient).all():
            return
        step, self._memory = self._method.update.update(
            gradient, self._memory, self._method.unit * self._theta, progress=progress, loss=loss
        )
        self._moved = -step / self._method.unit
        self._theta = self._theta + self._moved

    def recommend(self) -> Array:
        last = self._method.recommend == "last" or self._noise > 0 or not math.isfinite(self._best_loss)
        return (self._theta if last else self._best_theta).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": self._theta.copy(),
            "moved": self._moved.copy(),
            "best_theta": self._best_theta.copy(),
            # Scalars travel as float64 arrays: they come back to the bit, infinities and NaN included.
            "scalars": np.array(
                [self._step, self._spent, self._best_loss, self._repeats, self._noise, self._signal, self._noisy]
            ),
            **{f"update.{key}": np.array(value) for key, value in self._memory.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vectors = ("theta", "moved", "best_theta")
        memory = {f"update.{key}": Like("float64", value.shape) for key, value in self._memory.items()}
        wanted = {name: Like("float64", (self._dim,)) for name in vectors} | memory
        told = arrays_like(state, {**wanted, "scalars": Like("float64", (7,), finite=False)})
        self._theta, self._moved, self._best_theta = (told[name] for name in vectors)
        step, spent, self._best_loss, repeats, self._noise, self._signal, noisy = told["scalars"].tolist()
        self._step, self._spent = whole_number(step, "step"), whole_number(spent, "spent")
        self._repeats, self._noisy = whole_number(repeats, "repeats"), bool(whole_number(noisy, "noisy", most=1))
        number(self._noise, "noise")
        self._memory = {key: told[f"update.{key}"] for key in self._memory}

    @property
    def _progress(self) -> float:
        return min(1.0, self._spent / self._candidates)

    def _estimator(self, progress: float) -> Any:
        """The estimator in force, with its h at this progress and in units of theta."""
        method = self._method
        chosen = method.fallback if self._noisy and method.fallback is not None else method.estimator
        return replace(chosen, h=chosen.h * method.probe.at(progress) / method.unit)  # type: ignore[type-var]

    def _plan(self, count: int) -> tuple[int, int, Array]:
        """What a round of at most `count` candidates holds: base (0 or 1), repeats of it (0 or 1), probes `(k, d)`.

        The plan for as many candidates as a plan has is that plan: `tell` finds the layout of `ask` from the number
        of answers alone.
        """
        if count < 1:
            raise ValueError(f"{count=}: a search can only be asked for at least one candidate")
        estimator = self._estimator(self._progress)
        first = self._spent == 0
        base = int(estimator.shares_base or first or count < estimator.block)
        listens = self._method.fallback is not None and not self._noisy and count > 2
        repeat = int(listens and (first or (self._noise > 0 and self._repeats < REPEATS)))
        room = count - base - repeat
        probes = estimator.probes(self._theta, rng(self._seed, self._step, Purpose.PROBES))[:room]
        return base, repeat, probes[: len(probes) // estimator.block * estimator.block]

    def _listen(self, told: Array, again: float | None) -> None:
        """Update what is known of noise and signal, and fall back to the other estimator if noise is above signal."""
        if again is not None and math.isfinite(again):
            self._repeats += 1
            # Half the squared difference of two answers estimates the variance of one.
            self._noise += ((again - told[0]) ** 2 / 2 - self._noise) / self._repeats
        rises = told[1:] - told[0]
        rises = rises[np.isfinite(rises)]
        if len(rises):
            now = float((rises**2).mean())
            self._signal = now if math.isnan(self._signal) else FADE * self._signal + (1 - FADE) * now
        # A difference carries the noise of two answers besides the signal.
        if self._repeats >= REPEATS and self._signal - 2 * self._noise < self._noise:
            self._noisy = True


@dataclass(frozen=True, kw_only=True)
class Momentum(SearchMethod):
    """Keyhole's own on losses alone: a few probes, then a step.

    Our scalar rule: few orthonormal probes on a shared base, averaged by momentum, steps of a set length.

    m <- beta m + (1 - beta) g,  m_hat = m / (1 - beta^t);
    theta <- theta - radius sqrt(d) (1 + cos(pi progress)) / 2 m_hat / |m_hat|.
    Why so (methods/peers.md, 3.3 and 3.4): with a deterministic loss, one-sided probes with a shared base beat
    antithetic pairs at equal evaluations; few directions and many steps beat many directions, as momentum does the
    averaging; a normalised step with cosine decay needs no step size search. Antithetic pairs are for noisy answers.
    """

    k: Count = 2
    """Probes a step."""
    h: Positive = 0.03
    """Root mean square of a probe's entries, in units of theta (the standard deviation of a token embedding)."""
    radius: Positive = 0.3
    """Root mean square of the first step's entries, in units of theta."""
    beta: ShareBelowOne = 0.9
    decay: str = "cosine"
    """Shape of the radius: cosine, constant or power."""
    directions: str = "orthonormal"
    pairs: str = "auto"
    """Antithetic pairs: `never`, `always`, or `auto`: from when the noise floor, measured by repeating the base, is
    above the signal of the probes."""
    recommend: str = "best"

    needs = Needs(gives=LOSSES)

    def __post_init__(self) -> None:
        check(self)
        if self.pairs not in ("auto", "never", "always"):
            hint = nearest(self.pairs, ("auto", "never", "always"))
            raise RecipeError(f"pairs={self.pairs!r} is unknown{hint}; give 'auto', 'never' or 'always'")
        self._descent(1)

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        return self._descent(space.dim).start(space, candidates, seed)

    def _descent(self, dim: int) -> Descent:
        one_sided = OneSided(k=self.k, h=self.h, directions=self.directions)
        paired = Pairs(k=self.k, h=self.h, directions=self.directions)
        radius = Schedule(size=self.radius * math.sqrt(dim), shape=self.decay)
        return Descent(
            estimator=paired if self.pairs == "always" else one_sided,
            fallback=paired if self.pairs == "auto" else None,
            update=chain(NormalisedMomentum(beta=self.beta), Normalise(), radius),
            recommend=self.recommend,
        )
