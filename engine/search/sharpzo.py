"""Methods built round a full CMA-ES: `bpt-vlm`, and `sharpzo`, which shifts its samples uphill and then descends.

Each is written as a script: a generator that yields candidates `(n, d)` and is sent back their `(n,)` losses. Replies
may arrive in any number of parts; a search is restored by running its script again on the losses that it was told.

Knows nothing of what theta means; a random projection, where a paper has one, is chosen with the prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.errors import RecipeError, nearest
from engine.protocols import Array, Feedback, Needs, Prefers
from engine.random_streams import Purpose, rng
from engine.search.replay import replay
from engine.search_space import Space
from engine.settings import Population, Positive, ShareBelowOne, Steps, Weight, check
from engine.tuning_loop import SearchMethod

ANSWERS = frozenset({"labels", "topk", "scores", "features"})
"""What a method can live on that only ranks its candidates."""

Script = Generator[Array, Array, None]
"""Yields candidates `(n, d)`, receives their losses `(n,)`, NaN where one failed. It never ends of itself."""


SHARPZO_STEPS = 20_000
"""Steps of SharpZO's runs."""


class ScriptSearch:
    """A running script. theta = 0 is asked first; what is recommended is the best candidate evaluated."""

    def __init__(self, script: Callable[[float], Script], dim: int) -> None:
        """`script` is called with the loss of theta = 0."""
        self._script, self._dim = script, dim
        self._begin()

    def _begin(self) -> None:
        self._running: Script | None = None
        self._queue = np.zeros((1, self._dim))
        self._losses: list[float] = []
        self._answered = 0
        self._digest = hashlib.sha256()
        self._best_theta, self._best_loss = np.zeros(self._dim, np.float32), math.inf

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        return self._queue[self._answered :][:limit].astype(np.float32)

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        losses = np.asarray(feedback.losses, dtype=np.float64)
        losses = np.where(np.isfinite(losses), losses, np.nan)
        for theta, loss in zip(np.ascontiguousarray(thetas, dtype=np.float32), losses, strict=True):
            self._digest.update(theta.tobytes())
            self._losses.append(float(loss))
            if loss < self._best_loss:
                self._best_theta, self._best_loss = theta.copy(), float(loss)
        self._answered += len(losses)
        if self._answered == len(self._queue):
            told = np.array(self._losses[-self._answered :])
            if self._running is None:
                self._running = self._script(float(told[0]))
                self._queue = next(self._running)
            else:
                self._queue = self._running.send(told)
            self._answered = 0

    def recommend(self) -> Array:
        return self._best_theta.copy()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": np.array(self._losses, dtype=np.float64), "asked": self._digest.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begin()
        replay(
            self,
            state,
            self._digest.hexdigest,
            "this search asks for other candidates than when its state was saved; resume with the same method, "
            "seed and versions of cma and numpy, or start anew",
        )


@dataclass(frozen=True, kw_only=True)
class BptVlm(SearchMethod):
    """BPT-VLM: evolution (CMA-ES), also from bare labels.

    BPT-VLM: full CMA-ES from theta = 0 with a population of 30 and standard deviation 1.

    Yu et al., Black-box Prompt Tuning for Vision-Language Model as a Service, IJCAI 2023. Text prompts take a random
    projection unless told otherwise: of an eighth of the dimensions, as 500 are of its eight tokens.
    """

    popsize: Population = 30
    sigma: Positive = 1.0
    """Initial standard deviation, in units of theta."""

    needs = Needs(gives=ANSWERS)
    prefers = Prefers(subspace="random:1/8")

    def __post_init__(self) -> None:
        check(self)

    def start(self, space: Space, candidates: float, seed: int) -> ScriptSearch:
        return ScriptSearch(lambda _: self._run(space.dim, seed), space.dim)

    def _run(self, dim: int, seed: int) -> Script:
        cma = full_cma(dim, self.sigma, self.popsize, seed)
        while True:
            samples = cma.ask()
            losses = yield np.stack(samples)
            cma.tell(samples, worst_last(losses))


@dataclass(frozen=True, kw_only=True)
class SharpZo(SearchMethod):
    """SharpZO: evolution (CMA-ES) first, then descent.

    SharpZO: CMA-ES on losses at samples shifted uphill (sharpness-aware), then sparse two-point descent.

    Yang et al., SharpZO, NeurIPS 2025, arXiv 2506.20990.
    Stage 1, each generation: ghat_i = (f(w + mu e_i) - f(w - mu e_i)) / (2 mu) for all i at the CMA mean w,
    eps* = rho ghat / |ghat|; evaluate x + eps*, tell CMA the x. That is 2d evaluations beside `popsize`.
    Text prompts take its Gaussian projection unless told otherwise: a quarter of the dimensions, as 512 of four tokens.
    Stage 2, from the mean: ghat = [(f(w + mu Om.u) - f(w - mu Om.u)) / (2 mu)] Om.u, u Gaussian, w <- w - eta ghat;
    the mask Om keeps the share 1 - `prune` of coordinates with the largest w^2 z(ghat^2), z standardised.
    """

    popsize: Population = 40
    sigma: Positive = 0.4
    """Initial standard deviation in raw units; the paper takes 0.1 to 1 by data set."""
    rho: Weight = 0.1
    """Length of the step uphill in raw units."""
    mu: Positive = 1e-3
    """Probe size of both stages in raw units, per coordinate."""
    switch: ShareBelowOne = 0.5
    """Share of the budget for stage 1; the paper's, counted in evaluations, is 0.43 to 0.79 by data set."""
    slope: str = "coordinates"
    """Where the direction uphill comes from. `coordinates`: the paper's 2d probes. Our corrections: `block`, d
    one-sided probes on a shared base, which tell as much for half the price; `momentum`, against the mean's last move,
    for nothing."""
    refresh: Steps = 1
    """Generations that share a coordinate gradient; the paper takes a new one for each."""
    eta: Positive | None = None
    """Step size of stage 2. The paper's is 1e-3 (0.1 on SUN and ImageNet) for 20,000 steps; None, our correction:
    1e-3 scaled up to the same number of steps, at most 0.1."""
    prune: ShareBelowOne = 0.5
    prune_every: Steps = 200
    """Steps of stage 2 between masks. The first comes from the last gradient of stage 1; each other costs 2d."""
    pairs: str = "sgd"
    """`sgd`: the paper's. `accumulate`: the released code's, whose gradients are summed and never cleared."""
    unit: Positive | None = None
    """One unit of theta in raw units; None: as the space says."""

    needs = Needs(gives=ANSWERS - {"labels"})
    prefers = Prefers(subspace="random:1/4")

    def __post_init__(self) -> None:
        check(self)
        for name, known in (("pairs", ("sgd", "accumulate")), ("slope", ("coordinates", "block", "momentum"))):
            if (given := getattr(self, name)) not in known:
                words = " or ".join(map(repr, known))
                raise RecipeError(f"{name}={given!r} is unknown{nearest(given, known)}; give {words}")

    def start(self, space: Space, candidates: float, seed: int) -> ScriptSearch:
        space = replace(space, unit=self.unit or space.unit)
        return ScriptSearch(lambda _: self._run(space, candidates, seed), space.dim)

    def _run(self, space: Space, candidates: float, seed: int) -> Script:
        mean, slope, spent = yield from self._warm_start(space, candidates, seed)
        yield from self._descend(mean, slope, space.unit, candidates - spent, seed)

    def _warm_start(
        self, space: Space, candidates: float, seed: int
    ) -> Generator[Array, Array, tuple[Array, Array, int]]:
        """Stage 1 (eq. 5). Returns the CMA mean, the last slope and the evaluations spent."""
        dim, unit = space.dim, space.unit
        cma = full_cma(dim, self.sigma / unit, self.popsize, seed)
        mean, slope, spent, generation = np.zeros(dim), np.zeros(dim), 1, 0
        price = {"coordinates": 2 * dim, "block": dim + 1, "momentum": 0}[self.slope]
        while True:
            due = generation % self.refresh == 0
            # A generation that would overrun the stage is not begun.
            cost = self.popsize + (price if due else 0)
            if spent + cost > self.switch * candidates:
                return mean, slope, spent
            if due and price:
                slope = yield from self._slope(mean, unit)
            samples = cma.ask()
            uphill = self.rho / unit * slope / (float(np.linalg.norm(slope)) or 1.0)
            losses = yield np.stack(samples) + uphill
            cma.tell(samples, worst_last(losses))
            if self.slope == "momentum":
                slope = mean - np.array(cma.mean)
            mean = np.array(cma.mean)
            spent += cost
            generation += 1

    def _descend(self, theta: Array, slope: Array, unit: float, left: float, seed: int) -> Script:
        """Stage 2 (eq. 6), with so many candidates left."""
        total = np.zeros(len(theta))
        eta = min(0.1, 1e-3 * SHARPZO_STEPS / max(1.0, left / 2)) if self.eta is None else self.eta
        step = 0
        while True:
            if step and step % self.prune_every == 0 and left >= 4 * len(theta):
                slope = yield from self._slope(theta, unit)
                left -= 2 * len(theta)
            if step % self.prune_every == 0:
                mask = self._mask(theta, slope)
            u = rng(seed, step, Purpose.PROBES).standard_normal(len(theta)) * mask
            probe = self.mu / unit * u
            up, down = yield np.stack([theta + probe, theta - probe])
            left -= 2
            # In raw units the slope is (up - down) / (2 mu); a raw step is divided by the unit.
            gradient = (up - down) / (2 * self.mu) * u if math.isfinite(up - down) else np.zeros(len(theta))
            total = total + gradient if self.pairs == "accumulate" else gradient
            theta = theta - eta / unit * total
            step += 1

    def _slope(self, theta: Array, unit: float) -> Generator[Array, Array, Array]:
        """The gradient from coordinate probes, in raw units; 0 where a probe failed."""
        probes = self.mu / unit * np.eye(len(theta))
        if self.slope == "coordinates":
            losses = yield np.concatenate([theta + probes, theta - probes])
            up, down = losses.reshape(2, -1)
            return np.nan_to_num((up - down) / (2 * self.mu))
        losses = yield np.concatenate([theta[None], theta + probes])
        return np.nan_to_num((losses[1:] - losses[0]) / self.mu)

    def _mask(self, theta: Array, slope: Array) -> Array:
        """1 on the coordinates kept; all where nothing is known of the slope, or theta has not moved."""
        squares = slope**2
        if not squares.std() > 0 or not theta.any():
            return np.ones(len(theta))
        merit = theta**2 * (squares - squares.mean()) / squares.std()
        kept = np.argsort(-merit, kind="stable")[: max(1, round(len(theta) * (1 - self.prune)))]
        mask = np.zeros(len(theta))
        mask[kept] = 1.0
        return mask


def full_cma(dim: int, sigma: float, popsize: int, seed: int) -> Any:
    """pycma's full CMA-ES from 0, on a random state of its own."""
    import cma

    words = rng(seed, 0, Purpose.OPTIMIZER).integers(0, 2**32, 8, dtype=np.uint32)
    options = {
        "popsize": popsize,
        "randn": np.random.RandomState(words).randn,
        "seed": math.nan,
        "verbose": -9,
        "CMA_diagonal": False,
    }
    return cma.CMAEvolutionStrategy(np.zeros(dim), sigma, options)


def worst_last(losses: Array) -> list[float]:
    """Losses with failures told as the worst of the generation plus 1."""
    good = losses[np.isfinite(losses)]
    worst = float(good.max()) + 1.0 if len(good) else 1.0
    return [float(loss) for loss in np.where(np.isfinite(losses), losses, worst)]
