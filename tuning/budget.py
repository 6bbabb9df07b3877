"""What a small budget can and cannot do, in one sentence.

Knows nothing of boxes, and of how methods search no more than how much one asks at a time.
"""

from __future__ import annotations

import math
from dataclasses import replace

from engine.protocols import Search
from engine.session import Session
from engine.tuning_loop import kept_back
from tuning.recipe import Recipe

ROUNDS = 2
"""Rounds that a method needs to get anywhere: one to learn from, one to try what it learned."""
LIKELY = 20
"""Rounds with which a search is likely to be worth its while."""
AMPLE = 100
"""Evaluations from which nothing is said."""


def is_small(recipe: Recipe) -> bool:
    """Whether `word` may have something to say."""
    return recipe.budget < AMPLE


def ample(recipe: Recipe) -> Recipe:
    """The same run with a budget under which a method asks as much at a time as it likes."""
    return replace(recipe, budget=float(AMPLE))


def word(recipe: Recipe, sample: Search, session: Session) -> str | None:
    """What this budget leaves for the search, where that is less than two of the method's rounds; None otherwise.

    Args:
        recipe: of the run.
        sample: a search of an `ample` run, to be thrown away.
        session: of the run, before its first question.
    """
    ledger, train, val = session.ledger, session.ledger.images, session.size("val")
    looks = 0 if session.free_looks else val
    rows = min(recipe.rows or train, train)
    if ledger.pairs_left < train + looks:
        return None  # the loop refuses it
    kept = kept_back(ledger, val)
    candidates = max(0, ledger.pairs_left - rows - looks - kept) // rows
    asked = len(sample.ask(recipe.batch or AMPLE))
    if candidates >= ROUNDS * asked:
        return None
    able = f"{candidates or 'no'} candidate{'' if candidates == 1 else 's'} can be tried"
    ends = "the prompt that it begins with" + (", or little better" if candidates else "")
    enough = [math.ceil((rows + looks + val + train + rounds * asked * rows) / train) for rounds in (ROUNDS, LIKELY)]
    return (
        f"budget={recipe.budget:g}: the template takes {(rows + looks) / train:.2f} evaluations and {kept / train:.2f} "
        f"are kept for the last look, so {able}, where {recipe.method} asks {asked} in its first round: the result "
        f"will be {ends}. Give a budget of {enough[0]} or more, better {enough[1]}"
    )
