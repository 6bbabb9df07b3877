"""The account of what a run asked of the box; it cannot be overspent.

The unit is the pair: one prompt with one image, sent to the box. One evaluation is N pairs, N the training images; the
budget is in evaluations. The final test read is accounted apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from engine.checkpoint import number, whole_number
from engine.errors import ArtifactError, BudgetError
from engine.protocols import Reply


@dataclass(kw_only=True)
class Ledger:
    """Counts, in the units of the hardware, of an API's bill and of the literature.

    >>> ledger = Ledger(images=160, budget=2)
    >>> ledger.affordable(160)
    2
    """

    images: int
    """N, training images: pairs of one evaluation."""
    budget: float
    """Evaluations allowed. Raises BudgetError where it is not positive."""
    pairs: int = 0
    test_pairs: int = 0
    sequences: int = 0
    image_encodes: int = 0
    retries: int = 0
    duplicates: int = 0
    bytes: int = 0
    followed: int = 0
    """Pairs that follow from answers already booked and are free, though the box computed them again."""
    cost: float = 0.0
    """Money, for a box that has a price."""
    staged: list[str] = field(default_factory=list)
    """Splits whose images have been encoded: each counts once, however many workers hold a copy."""

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise BudgetError(f"budget={self.budget}: a budget is a positive number of evaluations; try budget=1000")

    @property
    def evaluations(self) -> float:
        """Pairs spent, in evaluations of the whole training set."""
        return self.pairs / self.images

    @property
    def pairs_left(self) -> int:
        """Pairs that the budget still allows."""
        # The epsilon forgives budgets such as 0.1 * 160 that fall a rounding error short of whole pairs.
        return int(self.budget * self.images + 1e-6) - self.pairs

    def affordable(self, rows: int, *, reserve: int = 0) -> int:
        """How many candidates on `rows` rows the budget allows, with `reserve` pairs kept back."""
        return max(0, (self.pairs_left - reserve) // rows)

    def charge(self, reply: Reply, *, pairs: int | None = None) -> None:
        """Book an answer; `pairs` replaces its own count where part of it follows from earlier answers.

        Raises BudgetError where the budget does not cover it.
        """
        due = reply.pairs if pairs is None else pairs
        self.cover(due)
        self.pairs += due
        self.followed += reply.pairs - due
        self._work(reply)

    def cover(self, pairs: int) -> None:
        """Raises BudgetError where the budget does not cover this many more pairs."""
        if pairs > self.pairs_left:
            raise BudgetError(
                f"{pairs} pairs asked with {self.pairs_left} left of a budget of {self.budget} evaluations; allow more"
            )

    def charge_test(self, reply: Reply) -> None:
        """Book the final test read, apart from the budget."""
        self.test_pairs += reply.pairs
        self._work(reply)

    def charge_again(self, reply: Reply) -> None:
        """Book, as a retry, an answer that was booked before and lost with its process."""
        self.retries += 1 + reply.retries
        self.duplicates += reply.duplicates
        self.bytes += reply.bytes

    def _work(self, reply: Reply) -> None:
        self.sequences += reply.work.sequences
        self.image_encodes += reply.work.image_encodes
        if reply.split not in self.staged:
            self.staged.append(reply.split)
            self.image_encodes += reply.staged
        self.retries += reply.retries
        self.duplicates += reply.duplicates
        self.bytes += reply.bytes

    def counts(self) -> dict[str, Any]:
        """The counts in `result.json`."""
        told = asdict(self)
        for name in ("images", "budget", "staged", "followed"):
            del told[name]
        return {"evaluations": self.evaluations, **told}

    def state_dict(self) -> dict[str, Any]:
        """The whole account, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the account of a checkpoint.

        Raises ArtifactError where it is damaged, or of a run with other `images` or another `budget`.
        """
        if not isinstance(state, dict) or state.keys() != asdict(self).keys():
            raise ArtifactError("its ledger lacks an entry or has one too many")
        for name in ("images", "budget"):
            if state[name] != getattr(self, name):
                raise ArtifactError(
                    f"its ledger has {name} {state[name]!r:.40} where {getattr(self, name)} is expected"
                )
        staged = state["staged"]
        if not isinstance(staged, list) or not all(isinstance(split, str) for split in staged):
            raise ArtifactError("its ledger has no list of staged splits")
        for name in ("pairs", "test_pairs", "sequences", "image_encodes", "retries", "duplicates", "bytes", "followed"):
            setattr(self, name, whole_number(state[name], f"ledger.{name}"))
        self.cost, self.staged = number(state["cost"], "ledger.cost"), list(staged)
        if self.pairs_left < 0:
            raise ArtifactError(f"its ledger has {self.pairs} pairs, more than the budget of {self.budget} covers")
