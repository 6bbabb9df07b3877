"""`ceiling:NAME` as a method: a white-box reference beside the black-box methods, under the same account."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import RecipeError, nearest
from engine.outcome import Outcome
from engine.protocols import Array, Needs
from engine.search.no_search import Once
from engine.session import Session
from tuning.white_box.coop import fit_coop

CEILINGS = {"coop": fit_coop}
"""NAME -> its training on image features and labels."""


@dataclass(frozen=True)
class Ceiling(Once):
    """CoOp by gradients: what a search is measured against.

    The images' features are the session's, and booked; the text tower is opened beside it, and its gradients are not.
    """

    name: str

    needs = Needs(gives=frozenset({"features"}), accepts=frozenset({"context"}), whole=True)

    def __post_init__(self) -> None:
        if self.name not in CEILINGS:
            raise RecipeError(
                f"unknown method 'ceiling:{self.name}'{nearest(self.name, CEILINGS)}; allowed are "
                f"{', '.join(f'ceiling:{name}' for name in CEILINGS)}"
            )

    def _outcome(self, template: Array, session: Session) -> Outcome:
        def examples(split: str) -> tuple[Array, Array]:
            image = session.outputs(template, split).image
            assert image is not None
            return image[0], session.task.splits[split].labels

        tokens, box = session.evaluator.spec.prompt.get("tokens"), session.evaluator.spec.open()
        found = CEILINGS[self.name](box, examples("train"), examples("val"), tokens=tokens, seed=session.settings.seed)
        return Outcome(
            val_accuracy=found.val_accuracy,
            train_loss=found.train_loss,
            text=found.text,
            arrays={"context": np.asarray(found.context, np.float32)},
        )
