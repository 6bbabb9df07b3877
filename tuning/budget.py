"""What a small budget can and cannot do, in one sentence.

Knows nothing of boxes, and of how methods search no more than how much one asks at a time.
"""

from __future__ import annotations

import math

from engine.session import Session
from engine.tuning_loop import SearchMethod

ROUNDS = 2
"""Rounds that a method needs to get anywhere: one to learn from, one to try what it learned."""
LIKELY = 20
"""Rounds with which a search is likely to be worth its while."""
AMPLE = 100
"""Evaluations from which nothing is said."""


def word(session: Session, method: SearchMethod, name: str) -> str | None:
    """What this budget leaves for the search, where that is less than two of the method's rounds; None otherwise.

    Args:
        session: of the run, before its first question.
        method: of the run.
        name: what the recipe calls it.
    """
    ledger, train, val = session.ledger, session.ledger.images, session.size("val")
    looks = 0 if session.free_looks else val
    if ledger.budget >= AMPLE or ledger.pairs_left < train + looks:
        return None  # a budget that does not cover the template is refused by the loop
    rows, kept = session.rows, session.reserve
    candidates = max(0, ledger.pairs_left - rows - looks - kept) // rows
    # Under an ample budget a method asks as much at a time as it likes.
    sample = method.start(session.space, AMPLE * train / rows, session.settings.seed)
    asked = len(sample.ask(session.settings.batch or AMPLE))
    if candidates >= ROUNDS * asked:
        return None
    able = f"{candidates or 'no'} candidate{'' if candidates == 1 else 's'} can be tried"
    ends = "the prompt that it begins with" + (", or little better" if candidates else "")
    enough = [math.ceil((rows + looks + val + train + rounds * asked * rows) / train) for rounds in (ROUNDS, LIKELY)]
    return (
        f"budget={ledger.budget:g}: the template takes {(rows + looks) / train:.2f} evaluations and {kept / train:.2f} "
        f"are kept for the last look, so {able}, where {name} asks {asked} in its first round: the result "
        f"will be {ends}. Give a budget of {enough[0]} or more, better {enough[1]}"
    )
