"""Methods that search nothing: the template itself, the ensemble of many, heads on what the box returns for it.

They pay in the same ledger: the training and validation images, which they send once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import heads
from engine.errors import BudgetError, RecipeError, nearest
from engine.outcome import Outcome, with_head, with_mixture
from engine.prompts.template_list import TEMPLATES
from engine.protocols import GIVES, Array, Needs, Prefers
from engine.session import Session
from engine.tuning_loop import Step


class Once:
    """A method that sends the training and validation images once, under the template, and makes what it can of it."""

    prefers = Prefers()

    def run(self, session: Session, resume: dict[str, Any] | None = None) -> Iterator[Step]:
        """No rounds. Raises BudgetError where the images are not within the budget."""
        pairs = session.size("train") + session.size("val")
        if pairs > session.ledger.pairs_left:
            raise BudgetError(
                f"budget={session.ledger.budget:g}: a method that searches nothing sends the training and validation "
                f"images once, {pairs / session.ledger.images:.2f} evaluations; allow more"
            )
        template = np.zeros(session.space.dim, np.float32)
        session.read(template, "train")
        session.read(template, "val")
        session.outcome = self._outcome(template, session)
        yield from ()

    def cost(self, num_train: int, num_val: int, budget: float) -> float:
        """One evaluation, and the validation images."""
        return 1 + num_val / num_train

    def _outcome(self, template: Array, session: Session) -> Outcome:
        raise NotImplementedError


@dataclass(frozen=True)
class ZeroShot(Once):
    """No search: the task's own template, to compare with."""

    needs = Needs(gives=frozenset(GIVES))

    def _outcome(self, template: Array, session: Session) -> Outcome:
        known, right = session.read(template, "train"), session.read(template, "val").correct[0]
        loss = session.train_loss(template, float(known.losses[0]))
        return Outcome(theta=template, val_accuracy=int(right) / session.size("val"), train_loss=loss)


@dataclass(frozen=True)
class Ensemble(Once):
    """No search: the average of many hand-written templates."""

    needs = Needs(gives=frozenset({"features"}), accepts=frozenset({"words"}), whole=True)
    prefers = Prefers(prompt="words")

    def _outcome(self, template: Array, session: Session) -> Outcome:
        # The templates that the box knows, as many as the budget covers: an evaluation each.
        assert session.space.known is not None
        pool = session.space.known[: 1 + session.ledger.affordable(session.size("train"))]
        if len(pool) > 1:
            session.evaluate(pool[1:])
        return with_mixture(pool, template, session, plain=True)

    def cost(self, num_train: int, num_val: int, budget: float) -> float:
        """Besides, an evaluation for each template."""
        return min(budget, super().cost(num_train, num_val, budget) + len(TEMPLATES))


@dataclass(frozen=True)
class HeadAlone(Once):
    """A head on what the box returns for the template. Raises RecipeError for a head that does not exist."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in heads.HEADS:
            raise RecipeError(
                f"unknown method 'head:{self.name}'{nearest(f'head:{self.name}', [f'head:{n}' for n in heads.HEADS])}; "
                f"heads are {', '.join(heads.HEADS)}"
            )

    @property
    def needs(self) -> Needs:
        """What the head reads."""
        return Needs(gives=heads.needed(self.name), whole=True)

    def _outcome(self, template: Array, session: Session) -> Outcome:
        return with_head(self.name, template, session)
