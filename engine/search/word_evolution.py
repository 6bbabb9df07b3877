"""`words`: evolutionary search over templates in words, slot by slot.

Its candidates are rows of whole numbers, one a slot of the sentence (engine/prompts/words.py); what the numbers stand
for it does not know, only which rows are whole templates: the pool.

Knows nothing of tokens and of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from engine.checkpoint import Like, arrays_like
from engine.outcome import with_mixture
from engine.protocols import Array, Feedback, Needs, Prefers
from engine.random_streams import Purpose, rng
from engine.search.sharpzo import ANSWERS, Script, ScriptSearch
from engine.search_space import Space
from engine.session import Session
from engine.settings import MANY, Range, Share, check
from engine.tuning_loop import SearchMethod, Step, arrived, steps

TRIES = 50
"""How often a child that was evaluated before is made anew, before it is evaluated again."""


@dataclass(frozen=True, kw_only=True)
class Words(SearchMethod):
    """Templates in plain words, for boxes that take only words.

    Templates in words, recombined: each child takes every slot from one of two good parents, or from the pool.

    First the pool of whole templates is evaluated, then generations of `popsize` children of the `popsize` best so far.
    Only ranks count, so that labels are enough. Where the box gives features, the deployed classifier mixes all the
    templates that were asked, with convex weights found without a query (engine/heads/template_mixture.py).
    """

    popsize: Annotated[int, Range(2, MANY)] = 20
    rate: Share | None = None
    """Share of slots that a child takes from the pool; None: one of them on average."""

    needs = Needs(gives=ANSWERS, accepts=frozenset({"words"}))
    prefers = Prefers(prompt="words", head="templates")

    def __post_init__(self) -> None:
        check(self)

    def start(self, space: Space, candidates: float, seed: int) -> WordsSearch:
        return WordsSearch(self, space, seed)

    def run(self, session: Session, resume: dict[str, Any] | None = None) -> Iterator[Step]:
        """Search; where features are given, mix all that were asked. Raises as `steps`."""
        search = self.begin(session)
        best = yield from steps(search, session, resume=resume)
        if session.settings.head == "templates":
            assert isinstance(search, WordsSearch)
            session.outcome = with_mixture(search.asked, best.theta, session)
        else:
            session.outcome = arrived(session, best)


class WordsSearch:
    """The running half of `Words`. In a space without known candidates it knows theta = 0 alone."""

    def __init__(self, method: Words, space: Space, seed: int) -> None:
        self._method, self._dim, self._seed = method, space.dim, seed
        self._pool = np.zeros((1, space.dim), np.float32) if space.known is None else np.array(space.known, np.float32)
        self._search = ScriptSearch(self._run, space.dim)
        self._asked: dict[bytes, Array] = {}

    @property
    def asked(self) -> Array:
        """`(n, d)` the different candidates that were evaluated, in their order."""
        return np.stack(list(self._asked.values()))

    def ask(self, limit: int) -> Array:
        return self._search.ask(limit)

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        self._note(thetas)
        self._search.tell(thetas, feedback)

    def recommend(self) -> Array:
        return self._search.recommend()

    def state_dict(self) -> dict[str, Any]:
        rows = list(self._asked.values()) or [np.zeros((0, self._dim), np.float32)]
        return {**self._search.state_dict(), "rows": np.vstack(rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = arrays_like(state, {"rows": Like("float32", (None, self._dim))}, besides=["losses", "asked"])["rows"]
        self._search.load_state_dict({key: value for key, value in state.items() if key != "rows"})
        self._asked = {}
        self._note(rows)

    def _note(self, thetas: Array) -> None:
        for theta in thetas:
            self._asked.setdefault(_key(theta), np.array(theta, np.float32))

    def _run(self, loss: float) -> Script:
        size, pool = self._method.popsize, self._pool
        rate = 1 / self._dim if self._method.rate is None else self._method.rate
        known = {_key(np.zeros(self._dim)): (loss, np.zeros(self._dim, np.float32))}
        children = [row for row in pool if row.any()]
        generation = 0
        while True:
            for first in range(0, len(children), size):
                batch = np.stack(children[first : first + size])
                for row, told in zip(batch, (yield batch), strict=True):
                    known.setdefault(_key(row), (told if np.isfinite(told) else np.inf, row))
            random = rng(self._seed, generation, Purpose.OPTIMIZER)
            best = sorted(known.values(), key=lambda pair: pair[0])[:size]  # stable: the earlier of equals first
            children, seen = [], set(known)
            for _ in range(size):
                children.append(self._child(random, [row for _, row in best], seen, rate))
                seen.add(_key(children[-1]))
            generation += 1

    def _child(self, random: np.random.Generator, parents: list[Array], seen: set[bytes], rate: float) -> Array:
        for attempt in range(TRIES):
            one, other = (parents[int(i)] for i in random.integers(0, len(parents), 2))
            child = np.where(random.random(self._dim) < 0.5, one, other)
            taken = self._pool[random.integers(0, len(self._pool), self._dim), np.arange(self._dim)]
            # Where a neighbourhood is exhausted, more and more is taken from the pool.
            child = np.where(random.random(self._dim) < rate + (1 - rate) * attempt / TRIES, taken, child)
            if _key(child) not in seen:
                break
        return child.astype(np.float32)


def _key(theta: Array) -> bytes:
    return np.asarray(theta, np.float32).tobytes()
