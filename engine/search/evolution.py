"""Nevergrad's optimizers by ask and tell, in batches: `nevergrad:NAME`.

Knows nothing of any particular optimizer but whether it can be asked for several candidates at once.
"""

from __future__ import annotations

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

from engine import noise
from engine.core import Array, Feedback, Needs
from engine.errors import ArtifactError, RecipeError, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Nevergrad:
    """Any optimizer of Nevergrad's registry, over `Array(shape=(d,))` from theta = 0 with standard deviation `sigma`.

    - theta = 0 is the first candidate; for the CMA family it is also the mean of the first population.
    - A batch of `batch` candidates is asked for (and the optimizer told of as many workers); replies are told in the
      order asked. Optimizers that cannot work in batches run one by one, and a warning says so.
    - A candidate that failed (NaN) is told as the worst loss so far plus 1: finite, so that no optimizer breaks, and
      never attractive.
    - `recommend` is the optimizer's own recommendation where it is one of the evaluated candidates or has been
      followed by better knowledge only in the optimizer's own model (CMA's mean) -- see `NevergradSearch.recommend`.

    Source: Rapin and Teytaud, Nevergrad, 2018.
    """

    name: str
    sigma: float = 0.3
    """Initial standard deviation of the search, in units of theta."""
    batch: int = 20

    needs = Needs()

    def __post_init__(self) -> None:
        import nevergrad as ng

        if self.name not in ng.optimizers.registry:
            hint = nearest(self.name, ng.optimizers.registry)
            raise RecipeError(
                f"nevergrad:{self.name} is not an optimizer of this Nevergrad ({ng.__version__}){hint}; "
                "nevergrad.optimizers.registry lists them"
            )
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise RecipeError(f"sigma={self.sigma} is no initial scale; give a positive number in units of theta")
        if self.batch < 1:
            raise RecipeError(f"batch={self.batch} candidates at once; give at least 1")

    def start(self, dim: int, budget: float, seed: int) -> NevergradSearch:
        return NevergradSearch(self, dim, budget, seed)


class NevergradSearch:
    """The running half of `Nevergrad`. Its state is what it was told; it is restored by telling that again."""

    def __init__(self, method: Nevergrad, dim: int, budget: float, seed: int) -> None:
        self._method, self._dim, self._budget, self._seed = method, dim, budget, seed
        self._begin()

    def _begin(self) -> None:
        import nevergrad as ng

        method = self._method
        kind = ng.optimizers.registry[method.name]
        self._batch = method.batch
        if kind.no_parallelization and method.batch > 1:
            log.warning("nevergrad:%s cannot work in batches: candidates are asked for one by one", method.name)
            self._batch = 1
        with _quiet():
            space = ng.p.Array(init=np.zeros(self._dim)).set_mutation(sigma=method.sigma)
            space.random_state = np.random.RandomState(
                noise.rng(self._seed, 0, noise.Purpose.OPTIMIZER).integers(0, 2**32, 8, dtype=np.uint32)
            )
            workers = min(self._batch, max(1, int(self._budget)))
            self._optimizer = kind(space, budget=max(1, int(self._budget)), num_workers=workers)
            # The first thing asked for, whatever the optimizer would have begun with.
            self._optimizer.suggest(np.zeros(self._dim))
        self._asked: list[Any] = []
        self._counts: list[int] = []
        self._losses: list[float] = []
        self._digest = hashlib.sha256()
        self._best_theta, self._best_loss, self._worst = np.zeros(self._dim, np.float32), math.inf, -math.inf
