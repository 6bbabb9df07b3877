"""Words: the evolutionary search on a pool of whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import RecipeError
from engine.protocols import Feedback
from engine.search import make
from engine.search_space import Space

SLOTS, CHOICES = 6, 5
POOL = np.vstack([np.zeros(SLOTS), np.random.default_rng(0).integers(0, CHOICES, (12, SLOTS))]).astype(np.float32)
TARGET = np.array([POOL[1 + slot % 12, slot] for slot in range(SLOTS)], np.float32)


def wrong(thetas):
    """How many slots are not the target's: a loss with many ties, as an error rate has."""
    return (np.rint(thetas) != TARGET).sum(1) / SLOTS


def started(seed=1, **options):
    return make("words", options).start(Space(dim=SLOTS, known=POOL), 300, seed)


def rounds(search, budget, batch=7, done=0, loss=wrong):
    while done < budget:
        thetas = search.ask(min(batch, budget - done))
        search.tell(thetas, Feedback(losses=loss(thetas)))
        done += len(thetas)
        yield thetas


def test_the_template_then_the_pool_then_recombinations():
    search = started()
    asked = np.vstack(list(rounds(search, 150)))
    assert not asked[0].any()
    np.testing.assert_array_equal(asked[1:13], POOL[1:])
    known = {row.tobytes() for row in POOL}
    assert all(row.tobytes() not in known for row in asked[13:])
    assert all((asked[:, slot, None] == POOL[:, slot]).any(1).all() for slot in range(SLOTS))
    assert wrong(search.recommend()[None])[0] < wrong(POOL).min()
    assert len(search.asked) == len({row.tobytes() for row in asked})


def test_no_candidate_is_paid_for_twice_while_there_are_new_ones():
    asked = np.vstack(list(rounds(started(), 200)))
    assert len({row.tobytes() for row in asked}) == 200


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_resumes_to_the_same_bits(cut):
    whole, resumed, done = started(), None, 0
    for number, thetas in enumerate(rounds(whole, 120), 1):
        done += len(thetas)
        if number == cut:
            resumed = started()
            resumed.load_state_dict(whole.state_dict())
            others = rounds(resumed, 120, done=done)
        elif resumed is not None:
            assert thetas.tobytes() == next(others).tobytes()
    assert whole.recommend().tobytes() == resumed.recommend().tobytes()
    np.testing.assert_array_equal(whole.asked, resumed.asked)


def test_failures_and_an_empty_pool():
    random = np.random.default_rng(1)
    search = started()
    for _ in rounds(search, 150, loss=lambda t: np.where(random.random(len(t)) < 0.3, np.nan, wrong(t))):
        pass
    assert wrong(search.recommend()[None])[0] < wrong(POOL[:1])[0]
    alone = make("words").start(Space(dim=SLOTS), 10, 1)  # which knows of no templates
    assert not np.vstack(list(rounds(alone, 10))).any()


def test_settings_and_needs():
    for settings in ({"popsize": 1}, {"rate": 1.5}):
        with pytest.raises(RecipeError):
            make("words", settings)
    assert "labels" in make("words").needs.gives and make("words").needs.accepts == {"words"}
