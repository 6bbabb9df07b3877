"""The scalar rules of the field, each a frozen dataclass of its paper's settings on our estimators and updates.

Their step sizes are in the units of what they tune, raw token embeddings (or raw pixels): `unit` says what one unit of
theta is there; None: as the space says, which for text is the standard deviation of the box's token embedding. The
rule then moves w = unit * theta as its paper would. Schedules that count steps (t in SPSA's decay) count those of the
run; `horizon` stretches them to another number of steps.

Sources are the papers and, where these differ, what their released code runs (methods/peers.md, methods/cbbt.md).
Knows nothing of what a prompt is: a paper's subspace is a parametrization, chosen apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from engine.errors import RecipeError, nearest
from engine.protocols import Needs, Prefers
from engine.search.gradient_estimators import OneSided, Spsa
from engine.search.momentum import LOSSES, Descent, DescentSearch
from engine.search.step_rules import Adam, ClipByNorm, LookAhead, Momentum, Schedule, Update, chain
from engine.search_space import Space
from engine.settings import Count, Exponent, Positive, PositiveOrZero, ShareBelowOne, Weight, check
from engine.tuning_loop import SearchMethod

CBBT_STEPS = 750
"""Steps of CBBT's shortest published run (EuroSAT)."""
CBBT_DIRECTIONS = (4, 256)
"""Fewest and most directions that are chosen from the budget; the most is the paper's."""


@dataclass(frozen=True, kw_only=True)
class Cbbt(SearchMethod):
    """CBBT: random probes around the prompt, then descent.

    CBBT's prompt half: q sphere directions on a shared base, gradient clipped, cosine decay.

    Guo et al., Black-Box Tuning of Vision-Language Models with Effective Gradient Approximation, Findings of EMNLP
    2023, arXiv 2312.15901:  g = (kappa / q) sum_j [(f(w + eps u_j) - f(w)) / eps] u_j,  |u_j| = 1;  |g| clipped to 5.
    """

    q: Count | None = None
    """Directions a step, all on one baseline: q + 1 evaluations. The paper's 256 spend a budget of 1000 on four steps;
    None, our correction: as many as leave 750 steps, at least 4 and at most 256."""
    eps: PositiveOrZero = 0.0
    """Length of a probe in raw units; 0: max(1 / d, 1e-3), as published."""
    lr: Positive | None = None
    """None: 2e-3 of `adam`, the repository's; 0.1 of `momentum`, ours, as no source tells it."""
    clip: Positive = 5.0
    rule: str = "momentum"
    """`momentum`: history momentum, as the paper tells it (an average of past gradients, beta 0.9, our reading: its
    code has none). `adam`: the repository's Adam with coupled weight decay, here towards the template."""
    beta: ShareBelowOne = 0.9
    weight_decay: Weight = 5e-4
    """Of `adam` alone."""
    kappa: str = "d"
    """`d`: the unbiased factor. `1/eps`: the repository's, which is too small by 1000 / d beyond d = 1000."""
    unit: Positive | None = None

    needs = Needs(gives=LOSSES)

    def __post_init__(self) -> None:
        check(self)
        _choice("rule", self.rule, ("momentum", "adam"))
        _choice("kappa", self.kappa, ("d", "1/eps"))
        self._descent(Space(dim=1), 1)

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        return self._descent(space, candidates).start(space, candidates, seed)

    def _descent(self, space: Space, candidates: float) -> Descent:
        fewest, most = CBBT_DIRECTIONS
        q = max(fewest, min(most, int(candidates / CBBT_STEPS) - 1)) if self.q is None else self.q
        eps = self.eps or max(1 / space.dim, 1e-3)
        repository = Schedule(size=1 / (eps * space.dim) if self.kappa == "1/eps" else 1.0)
        step: Update = Momentum(beta=self.beta)
        if self.rule == "adam":
            step = Adam(weight_decay=self.weight_decay)
        lr = (2e-3 if self.rule == "adam" else 0.1) if self.lr is None else self.lr
        return Descent(
            estimator=OneSided(k=q, h=eps / math.sqrt(space.dim), directions="sphere"),
            update=chain(repository, ClipByNorm(limit=self.clip), step, Schedule(size=lr, shape="cosine")),
            unit=self.unit or space.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class SpsaGc(SearchMethod):
    """BlackVIP's SPSA-GC: paired probes and momentum.

    BlackVIP's SPSA-GC: pairs of segmented-uniform probes, divided elementwise, and look-ahead momentum.

    Oh et al., BlackVIP, CVPR 2023, arXiv 2303.14773:  c_t = c / t^gamma,  a_t = a / (t + o)^alpha,
    m_t = beta m_{t-1} + g_t,  w <- w - a_t (g_t + beta m_t): not normalised, so that beta = 0.9 takes about ten times
    the step.
    """

    k: Count = 5
    """Pairs a step: 2k evaluations."""
    c: Positive = 0.01
    a: Positive = 0.01
    o: Weight = 1.0
    alpha: Exponent = 0.4
    gamma: Exponent = 0.1
    beta: ShareBelowOne = 0.9
    horizon: Positive | None = None
    """Steps over which a and c decay; None: those of the run, t as the paper counts it (its runs have 5000 or more)."""
    unit: Positive | None = None

    needs = Needs(gives=LOSSES)

    def __post_init__(self) -> None:
        check(self)
        self._descent(Space(dim=1), 1)

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        return self._descent(space, candidates).start(space, candidates, seed)

    def _descent(self, space: Space, candidates: float) -> Descent:
        horizon = candidates / (2 * self.k) if self.horizon is None else self.horizon
        return Descent(
            estimator=Spsa(k=self.k, h=self.c),
            probe=Schedule(size=1.0, shape="power", alpha=self.gamma, offset=0.0, horizon=horizon),
            update=chain(
                LookAhead(beta=self.beta),
                Schedule(size=self.a, shape="power", alpha=self.alpha, offset=self.o, horizon=horizon),
            ),
            unit=self.unit or space.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class Bar(SearchMethod):
    """BAR: one-sided random probes and plain descent.

    BAR, as BlackVIP and ZIP run it: one-sided sphere estimator on a shared base, plain descent.

    Tsai et al., ICML 2020, arXiv 2007.08714:  g = (d / q) sum_j u_j (f(w + beta u_j) - f(w)) / beta;  w <- w - a_t g
    (with a mean over the directions). The learning rate falls from `lr` to `lr_end`. Its sizes are a pixel frame's, in
    units of theta whatever the prompt: `unit` is 1.
    """

    q: Count = 5
    beta: Positive = 0.01
    """Length of a probe in raw units."""
    lr: Positive = 10.0
    lr_end: Positive = 0.1
    unit: Positive = 1.0

    needs = Needs(gives=LOSSES)

    def __post_init__(self) -> None:
        check(self)
        if self.lr < self.lr_end:
            raise RecipeError(f"lr={self.lr} and lr_end={self.lr_end}: give lr >= lr_end")
        self._descent(Space(dim=1))

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        return self._descent(space).start(space, candidates, seed)

    def _descent(self, space: Space) -> Descent:
        return Descent(
            estimator=OneSided(k=self.q, h=self.beta / math.sqrt(space.dim), directions="sphere"),
            update=Schedule(size=self.lr, shape="cosine", floor=self.lr_end / self.lr),
            unit=self.unit,
            recommend="last",
        )


@dataclass(frozen=True, kw_only=True)
class Zip(SearchMethod):
    """ZIP: paired probes, averaged, with a clipped gradient.

    ZIP's update: SPSA averaged over k pairs, the gradient's norm clipped at sqrt(d).

    Park et al., ZIP, ICLR 2025:  w <- w - a_t g min(1, sqrt(d) / |g|). No momentum in the shipped configuration. Its
    parameters are low-rank with a shared vector: `engine.prompts.subspaces.LowRank`, which text prompts take unless
    told otherwise.
    """

    k: Count = 5
    c: Positive = 0.01
    a: Positive = 0.01
    o: Weight = 1.0
    alpha: Exponent = 0.4
    gamma: Exponent = 0.1
    clip: PositiveOrZero = 0.0
    """Threshold on |g|; 0: sqrt(d)."""
    horizon: Positive | None = None
    """Steps over which a and c decay; None: those of the run (the paper's have 500)."""
    unit: Positive | None = None

    needs = Needs(gives=LOSSES)
    prefers = Prefers(subspace="low-rank:5")

    def __post_init__(self) -> None:
        check(self)
        self._descent(Space(dim=1), 1)

    def start(self, space: Space, candidates: float, seed: int) -> DescentSearch:
        return self._descent(space, candidates).start(space, candidates, seed)

    def _descent(self, space: Space, candidates: float) -> Descent:
        horizon = candidates / (2 * self.k) if self.horizon is None else self.horizon
        return Descent(
            estimator=Spsa(k=self.k, h=self.c),
            probe=Schedule(size=1.0, shape="power", alpha=self.gamma, offset=0.0, horizon=horizon),
            update=chain(
                ClipByNorm(limit=self.clip or math.sqrt(space.dim)),
                Schedule(size=self.a, shape="power", alpha=self.alpha, offset=self.o, horizon=horizon),
            ),
            unit=self.unit or space.unit,
            recommend="last",
        )


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name}={value!r} is unknown{nearest(value, known)}; give {' or '.join(map(repr, known))}")
