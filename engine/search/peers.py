"""The scalar rules of the field, each a frozen dataclass of its paper's settings on our estimators and updates.

Their step sizes are in the units of what they tune, raw token embeddings (or raw pixels): `unit` says what one unit of
theta is there, the standard deviation of the box's token embedding (`box.spec.text.sigma`; 1 where theta is raw). The
rule then moves w = unit * theta as its paper would. Counts of steps in a schedule are scaled to the budget.

Sources are the papers and, where these differ, what their released code runs (methods/peers.md, methods/cbbt.md).
Knows nothing of what a prompt is: a paper's subspace is a parametrization, chosen apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.core import Needs
from engine.errors import RecipeError, nearest
from engine.search.descent import Descent, DescentSearch
from engine.search.estimators import OneSided, Spsa
from engine.search.updates import Adam, ClipByNorm, LookAhead, Momentum, Schedule, Update, chain

EMBEDDING_STD = 0.02
"""Standard deviation of token embeddings as CLIP's text towers are initialised."""


@dataclass(frozen=True, kw_only=True)
class Cbbt:
    """CBBT's prompt half: q sphere directions on a shared base, gradient clipped, cosine decay.

    Guo et al., Black-Box Tuning of Vision-Language Models with Effective Gradient Approximation, Findings of EMNLP
    2023, arXiv 2312.15901:  g = (kappa / q) sum_j [(f(w + eps u_j) - f(w)) / eps] u_j,  |u_j| = 1;  |g| clipped to 5.
    """

    q: int = 256
    """Directions a step, all on one baseline: q + 1 evaluations."""
    eps: float = 0.0
    """Length of a probe in raw units; 0: max(1 / d, 1e-3), as published."""
    lr: float = 2e-3
    clip: float = 5.0
    rule: str = "momentum"
    """`momentum`: history momentum, as the paper tells it (an average of past gradients, beta 0.9, our reading: its
    code has none). `adam`: the repository's Adam with coupled weight decay, here towards the template."""
    beta: float = 0.9
    weight_decay: float = 5e-4
    """Of `adam` alone."""
    kappa: str = "d"
    """`d`: the unbiased factor. `1/eps`: the repository's, which is too small by 1000 / d beyond d = 1000."""
    unit: float = EMBEDDING_STD

    needs = Needs()

    def __post_init__(self) -> None:
        _choice("rule", self.rule, ("momentum", "adam"))
        _choice("kappa", self.kappa, ("d", "1/eps"))
        if self.eps < 0:
            raise RecipeError(f"eps={self.eps} is no probe length; give a positive number, or 0 for max(1 / d, 1e-3)")
        self._descent(1)

    def start(self, dim: int, budget: float, seed: int) -> DescentSearch:
        return self._descent(dim).start(dim, budget, seed)

    def _descent(self, dim: int) -> Descent:
        eps = self.eps or max(1 / dim, 1e-3)
        repository = Schedule(size=1 / (eps * dim) if self.kappa == "1/eps" else 1.0)
        step: tuple[Update, ...] = (Momentum(beta=self.beta),)
        if self.rule == "adam":
            step = (Adam(weight_decay=self.weight_decay),)
        decay = Schedule(size=self.lr, shape="cosine")
        return Descent(
            estimator=OneSided(k=self.q, h=eps / math.sqrt(dim), directions="sphere"),
            update=chain(repository, ClipByNorm(limit=self.clip), *step, decay),
            unit=self.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class SpsaGc:
    """BlackVIP's SPSA-GC: pairs of segmented-uniform probes, divided elementwise, and look-ahead momentum.

    Oh et al., BlackVIP, CVPR 2023, arXiv 2303.14773:  c_t = c / t^gamma,  a_t = a / (t + o)^alpha,
    m_t = beta m_{t-1} + g_t,  w <- w - a_t (g_t + beta m_t): not normalised, so that beta = 0.9 takes about ten times
    the step.
    """

    k: int = 5
    """Pairs a step: 2k evaluations."""
    c: float = 0.01
    a: float = 0.01
    o: float = 1.0
    alpha: float = 0.4
    gamma: float = 0.1
    beta: float = 0.9
    horizon: float = 5000.0
    """Steps of the paper's run, over which a and c decay."""
    unit: float = EMBEDDING_STD

    needs = Needs()

    def __post_init__(self) -> None:
        self._descent()

    def start(self, dim: int, budget: float, seed: int) -> DescentSearch:
        return self._descent().start(dim, budget, seed)

    def _descent(self) -> Descent:
        return Descent(
            estimator=Spsa(k=self.k, h=self.c),
            probe=Schedule(size=1.0, shape="power", alpha=self.gamma, offset=0.0, horizon=self.horizon),
            update=chain(
                LookAhead(beta=self.beta),
                Schedule(size=self.a, shape="power", alpha=self.alpha, offset=self.o, horizon=self.horizon),
            ),
            unit=self.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class Bar:
    """BAR, as BlackVIP and ZIP run it: one-sided sphere estimator on a shared base, plain descent.

    Tsai et al., ICML 2020, arXiv 2007.08714:  g = (d / q) sum_j u_j (f(w + beta u_j) - f(w)) / beta;  w <- w - a_t g
    (with a mean over the directions). The learning rate falls from `lr` to `lr_end`. Made for a pixel frame (`unit` 1).
    """

    q: int = 5
    beta: float = 0.01
    """Length of a probe in raw units."""
    lr: float = 10.0
    lr_end: float = 0.1
    unit: float = 1.0

    needs = Needs()

    def __post_init__(self) -> None:
        if not self.lr >= self.lr_end > 0:
            raise RecipeError(f"lr={self.lr} and lr_end={self.lr_end}: give lr >= lr_end > 0")
        self._descent(1)

    def start(self, dim: int, budget: float, seed: int) -> DescentSearch:
        return self._descent(dim).start(dim, budget, seed)

    def _descent(self, dim: int) -> Descent:
        return Descent(
            estimator=OneSided(k=self.q, h=self.beta / math.sqrt(dim), directions="sphere"),
            update=Schedule(size=self.lr, shape="cosine", floor=self.lr_end / self.lr),
            unit=self.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class Zip:
    """ZIP's update: SPSA averaged over k pairs, the gradient's norm clipped at sqrt(d).

    Park et al., ZIP, ICLR 2025:  w <- w - a_t g min(1, sqrt(d) / |g|). No momentum in the shipped configuration. Its
    low-rank parameters are of their own scale: choose that subspace with the prompt, where `unit` is 1.
    """

    k: int = 5
    c: float = 0.01
    a: float = 0.01
    o: float = 1.0
    alpha: float = 0.4
    gamma: float = 0.1
    clip: float = 0.0
    """Threshold on |g|; 0: sqrt(d)."""
    horizon: float = 500.0
    unit: float = 1.0

    needs = Needs()

    def __post_init__(self) -> None:
        self._descent(1)

    def start(self, dim: int, budget: float, seed: int) -> DescentSearch:
        return self._descent(dim).start(dim, budget, seed)

    def _descent(self, dim: int) -> Descent:
        return Descent(
            estimator=Spsa(k=self.k, h=self.c),
            probe=Schedule(size=1.0, shape="power", alpha=self.gamma, offset=0.0, horizon=self.horizon),
            update=chain(
                ClipByNorm(limit=self.clip or math.sqrt(dim)),
                Schedule(size=self.a, shape="power", alpha=self.alpha, offset=self.o, horizon=self.horizon),
            ),
            unit=self.unit,
            recommend="last",
        )


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name}={value!r} is unknown{nearest(value, known)}; give {' or '.join(map(repr, known))}")
