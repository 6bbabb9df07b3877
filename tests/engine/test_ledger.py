import numpy as np
import pytest

from engine.errors import BudgetError
from engine.ledger import Ledger
from engine.protocols import Reply, Work


def reply(pairs: int) -> Reply:
    return Reply(
        losses=np.zeros(1), correct=np.zeros(1, int), pairs=pairs, work=Work(sequences=3, image_encodes=2), retries=1
    )


def test_counts_pairs_and_refuses_to_overspend():
    ledger = Ledger(images=10, budget=2.5)
    ledger.charge(reply(20))
    assert ledger.evaluations == 2 and ledger.pairs_left == 5
    assert ledger.affordable(5) == 1 and ledger.affordable(5, reserve=1) == 0
    with pytest.raises(BudgetError, match="6 pairs asked with 5 left"):
        ledger.charge(reply(6))
    assert ledger.pairs == 20


def test_test_reads_and_free_answers_are_apart():
    ledger = Ledger(images=10, budget=1)
    ledger.charge_test(reply(1000))
    ledger.charge(reply(7), pairs=0)
    counts = ledger.counts()
    assert counts["test_pairs"] == 1000 and counts["pairs"] == 0
    assert counts["sequences"] == 6 and counts["image_encodes"] == 4 and counts["retries"] == 2


def test_staging_is_counted_once_a_split():
    ledger = Ledger(images=10, budget=5)
    for split in ("train", "train", "val"):
        ledger.charge(Reply(losses=np.zeros(1), correct=np.zeros(1, int), pairs=1, work=Work(), split=split, staged=10))
    assert ledger.image_encodes == 20


def test_fractional_budget_is_whole_pairs():
    assert Ledger(images=10, budget=0.1 + 0.2).pairs_left == 3


@pytest.mark.parametrize("budget", [0, -1, float("nan")])
def test_budget_is_positive(budget):
    with pytest.raises(BudgetError, match="positive"):
        Ledger(images=10, budget=budget)


def test_restores_what_a_checkpoint_holds():
    ledger = Ledger(images=10, budget=5)
    ledger.charge(reply(10))
    other = Ledger(images=10, budget=5)
    other.load_state_dict(ledger.state_dict())
    assert other == ledger
