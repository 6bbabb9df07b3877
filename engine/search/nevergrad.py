"""Nevergrad's optimizers by ask and tell, in batches: `nevergrad:NAME`.

Knows nothing of any particular optimizer but which of them take a population's word and whether they work in batches.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import RecipeError, nearest
from engine.protocols import Array, Feedback, Needs
from engine.random_streams import Purpose, rng
from engine.search.replay import replay
from engine.search_space import Space
from engine.settings import Count, Positive, check
from engine.tuning_loop import SearchMethod

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Nevergrad(SearchMethod):
    """Any optimizer of the Nevergrad library, such as CMA.

    Any optimizer of Nevergrad's registry, over `Array(shape=(d,))` from theta = 0 with standard deviation `sigma`.

    - theta = 0 is evaluated first, alone. It is the mean of CMA's first population, the first point of OnePlusOne and
      a member of the first population of DE and PSO, and is not paid for again.
    - The optimizer is asked for `batch` candidates at once (its `num_workers`) and told their losses in that order
      when all are there, however the loop cuts them up. Optimizers that cannot do this run one by one, and say so.
    - A candidate that failed (NaN) is told as the worst loss so far plus 1: finite, so that no optimizer breaks on
      it, and never attractive.
    - What is recommended is the best candidate evaluated. `recommend="optimizer"` takes Nevergrad's own word, which
      for some optimizers (TBPSA, made for noise) is a mean that nobody evaluated.

    Source: Rapin and Teytaud, Nevergrad, 2018, github.com/facebookresearch/nevergrad.
    """

    name: str
    sigma: Positive = 1.0
    """Initial standard deviation of the search, in units of theta. Of 0.1, 0.3, 1 and 2, the best for DiagonalCMA."""
    batch: Count = 20
    recommend: str = "best"

    needs = Needs(gives=frozenset({"labels", "topk", "scores", "features"}))

    def __post_init__(self) -> None:
        import nevergrad as ng

        if self.name not in ng.optimizers.registry:
            hint = nearest(self.name, ng.optimizers.registry)
            raise RecipeError(
                f"nevergrad:{self.name} is not an optimizer of Nevergrad {ng.__version__}{hint}; "
                "CMA, DiagonalCMA, OnePlusOne, PSO, DE, TBPSA and NGOpt are, among others"
            )
        check(self)
        if self.recommend not in ("best", "optimizer"):
            raise RecipeError(f"recommend={self.recommend!r} is unknown; give 'best' or 'optimizer'")

    def start(self, space: Space, candidates: float, seed: int) -> NevergradSearch:
        """A search from theta = 0 that may ask for so many candidates."""
        return NevergradSearch(self, space.dim, candidates, seed)


class NevergradSearch:
    """The running half of `Nevergrad`. Its state is what it was told; it is restored by telling that again."""

    def __init__(self, method: Nevergrad, dim: int, candidates: float, seed: int) -> None:
        import nevergrad as ng

        self._method, self._dim, self._candidates, self._seed = method, dim, candidates, seed
        self._batch = method.batch
        if ng.optimizers.registry[method.name].no_parallelization and method.batch > 1:
            log.warning("nevergrad:%s cannot work in batches: its candidates are evaluated one by one", method.name)
            self._batch = 1
        self._begin()

    def _begin(self) -> None:
        import nevergrad as ng

        streams = rng(self._seed, 0, Purpose.OPTIMIZER).integers(0, 2**32, (2, 8), dtype=np.uint32)
        self._global = np.random.RandomState(streams[1]).get_state()
        with self._alone():
            theta = ng.p.Array(init=np.zeros(self._dim)).set_mutation(sigma=self._method.sigma)
            theta.random_state = np.random.RandomState(streams[0])
            budget = max(1, int(self._candidates))
            kind = ng.optimizers.registry[self._method.name]
            self._optimizer = kind(theta, budget=budget, num_workers=min(self._batch, budget))
        self._queue: list[Any] = []
        """Asked of the optimizer and not yet told."""
        self._queued: list[float] = []
        """Losses of the first of them."""
        self._losses: list[float] = []
        """All that was told to this search, theta = 0 first."""
        self._digest = hashlib.sha256()
        self._best_theta, self._best_loss, self._worst = np.zeros(self._dim, np.float32), math.inf, 0.0

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        if not self._losses:
            return np.zeros((1, self._dim), np.float32)
        if not self._queue:
            self._fill()
        waiting = self._queue[len(self._queued) :][:limit]
        return np.stack([np.asarray(candidate.value) for candidate in waiting]).astype(np.float32)

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        thetas = np.ascontiguousarray(thetas, dtype=np.float32)
        for theta, loss in zip(thetas, np.asarray(feedback.losses, dtype=np.float64), strict=True):
            self._digest.update(theta.tobytes())
            self._losses.append(float(loss))
            if math.isfinite(loss):
                self._worst = float(loss) if len(self._losses) == 1 else max(self._worst, float(loss))
                if loss < self._best_loss:
                    self._best_theta, self._best_loss = theta.copy(), float(loss)
            said = float(loss) if math.isfinite(loss) else self._worst + 1.0
            if len(self._losses) == 1:
                self._introduce(said)
            else:
                self._queued.append(said)
        if self._queue and len(self._queued) == len(self._queue):
            with self._alone():
                for candidate, said in zip(self._queue, self._queued, strict=True):
                    self._optimizer.tell(candidate, said)
            self._queue, self._queued = [], []

    def recommend(self) -> Array:
        if self._method.recommend == "best" or not self._optimizer.num_tell:
            return self._best_theta.copy()
        # An optimizer may draw random numbers to recommend: looking must not change what is asked next.
        before = self._optimizer.parametrization.random_state.get_state()
        here = self._global
        with self._alone():
            value = np.asarray(self._optimizer.recommend().value, dtype=np.float32)
        self._optimizer.parametrization.random_state.set_state(before)
        self._global = here
        return value if np.isfinite(value).all() else self._best_theta.copy()

    def state_dict(self) -> dict[str, Any]:
        return {"losses": np.array(self._losses, dtype=np.float64), "asked": self._digest.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begin()
        replay(
            self,
            state,
            self._digest.hexdigest,
            f"nevergrad:{self._method.name} asks for other candidates than when this state was saved; "
            "resume with the same versions of nevergrad, cma and numpy, or start anew",
        )

    def _fill(self) -> None:
        """Ask the optimizer for a batch. Where it asks for theta = 0 again, it is told what is known."""
        known = self._losses[0] if math.isfinite(self._losses[0]) else 1.0
        with self._alone():
            # pycma, which may adapt its step by the mean's last shift, must hear of one population before the next: it
            # is asked for whole ones.
            population = getattr(_innermost(self._optimizer), "_to_be_asked", None)
            while not self._queue or (len(self._queue) < self._batch if population is None else population):
                candidate = self._optimizer.ask()
                if self._optimizer.num_ask <= 2 and not np.any(candidate.value):
                    self._optimizer.tell(candidate, known)
                    continue
                self._queue.append(candidate)

    def _introduce(self, loss: float) -> None:
        """Tell theta = 0 to optimizers that keep a population; the others begin there of themselves."""
        from nevergrad.optimization import differentialevolution, optimizerlib

        if isinstance(self._optimizer, differentialevolution._DE | optimizerlib._PSO):
            with self._alone():
                self._optimizer.suggest(np.zeros(self._dim))
                self._optimizer.tell(self._optimizer.ask(), loss)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Run Nevergrad without its prints and warnings, and without sharing NumPy's global random state.

        Some optimizers draw from that global state; here it is this search's own, so that a replay draws the same.
        """
        from nevergrad.optimization import metamodel

        outside = np.random.get_state()
        np.random.set_state(self._global)
        # Nevergrad 1.0.12 calls float() on arrays of one element, which NumPy >= 2.4 refuses.
        vars(metamodel)["float"] = _number
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            del vars(metamodel)["float"]
            self._global = np.random.get_state()
            np.random.set_state(outside)


def _innermost(optimizer: Any) -> Any:
    """What a portfolio such as NGOpt has chosen; any other optimizer itself."""
    while hasattr(optimizer, "optim"):
        optimizer = optimizer.optim
    return optimizer


def _number(value: Any) -> float:
    return builtins.float(np.asarray(value).reshape(-1)[0]) if isinstance(value, np.ndarray) else builtins.float(value)
