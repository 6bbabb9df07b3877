"""What every search of the registry promises, whatever its method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.protocols import Feedback
from engine.search import METHODS, make, searches
from engine.search_space import Space

DIM = 10
SCALED = {
    # Settings whose published sizes are for gradients of another scale than this sphere's.
    "bar": {"lr": 0.05, "lr_end": 0.01},
    "spsa-gc": {"unit": 1.0},
    "zip": {"a": 0.3},
    "cbbt": {"q": 8, "lr": 1e-2},
    "words": None,  # searches whole numbers: it has tests of its own
    "sketch": None,  # needs the table: it has tests of its own
}
SEARCHES = [name for name in METHODS if searches(name) and SCALED.get(name, {}) is not None]
SCALAR = [name for name in SEARCHES if not make(name).needs.table]
NEVERGRAD = ["CMA", "DiagonalCMA", "OnePlusOne", "PSO", "DE", "TBPSA", "NGOpt"]
QUICK = [*SCALAR, "nevergrad:DiagonalCMA", "nevergrad:OnePlusOne", "nevergrad:DE"]
ALL = [*SCALAR, *(f"nevergrad:{name}" for name in NEVERGRAD)]


def method_of(name):
    return make(name, SCALED.get(name) or {})


def sphere(thetas):
    return ((thetas.astype(np.float64) - 1.0) ** 2).sum(1)


def rounds(search, budget, loss=sphere, batch=16, done=0):
    """Run to the budget; yields after each round what was asked."""
    while done < budget:
        thetas = search.ask(min(batch, budget - done))
        done += len(thetas)
        search.tell(thetas, Feedback(losses=loss(thetas)))
        yield thetas


def run(name, budget, loss=sphere, batch=16, seed=1):
    search = method_of(name).start(Space(dim=DIM), budget, seed)
    return search, list(rounds(search, budget, loss, batch))


@pytest.mark.parametrize("name", ALL)
def test_improves_on_a_sphere_from_zero_within_the_limit(name):
    search = method_of(name).start(Space(dim=DIM), 400, seed=1)
    done = 0
    while done < 400:
        limit = min(16, 400 - done)
        thetas = search.ask(limit)
        assert thetas.dtype == np.float32 and thetas.shape[1:] == (DIM,)
        assert 1 <= len(thetas) <= limit
        if done == 0:
            assert not thetas[0].any(), "theta = 0 is the first candidate"
        else:
            assert np.isfinite(thetas).all()
        search.tell(thetas, Feedback(losses=sphere(thetas)))
        done += len(thetas)
    best = search.recommend()
    assert best.shape == (DIM,) and best.dtype == np.float32
    # From 10. The slowest is OnePlusOne, whose step-size rule a batch of 20 blunts.
    assert sphere(best[None])[0] < 0.9 * DIM


@pytest.mark.parametrize("name", ALL)
def test_theta_zero_is_paid_for_once_at_the_start(name):
    _, asked = run(name, 60)
    zeros = sum(int((~thetas.any(1)).sum()) for thetas in asked)
    # Momentum repeats it once, to hear whether answers are noisy.
    assert zeros == (2 if name == "momentum" else 1)


@pytest.mark.parametrize("name", QUICK)
def test_failures_are_survived(name):
    random = np.random.default_rng(0)

    def flaky(thetas):
        losses = sphere(thetas)
        losses[random.random(len(losses)) < 0.3] = np.nan
        return losses

    search, asked = run(name, 300, flaky)
    assert all(np.isfinite(thetas).all() for thetas in asked)
    assert sphere(search.recommend()[None])[0] < DIM


@pytest.mark.parametrize("name", QUICK)
def test_nothing_but_failures_leaves_zero(name):
    search, asked = run(name, 64, lambda thetas: np.full(len(thetas), np.nan))
    assert all(np.isfinite(thetas).all() for thetas in asked)
    assert not search.recommend().any()


@pytest.mark.parametrize("name", ALL)
def test_resumes_to_the_same_bits(name):
    budget = 120
    whole = method_of(name).start(Space(dim=DIM), budget, seed=3)
    resumed = {}
    done = 0
    for number, thetas in enumerate(rounds(whole, budget), 1):
        done += len(thetas)
        for _, others in resumed.values():
            assert thetas.tobytes() == next(others).tobytes()
        if number in (1, 7):
            again = method_of(name).start(Space(dim=DIM), budget, seed=3)
            again.load_state_dict(whole.state_dict())
            resumed[number] = again, rounds(again, budget, done=done)
    assert len(resumed) == 2
    for again, others in resumed.values():
        assert next(others, None) is None
        assert whole.recommend().tobytes() == again.recommend().tobytes()


@pytest.mark.parametrize("name", QUICK)
def test_a_state_is_arrays_and_plain_values(name):
    search, _ = run(name, 40)
    for key, value in search.state_dict().items():
        assert isinstance(key, str)
        assert isinstance(value, str | int | float) or (isinstance(value, np.ndarray) and value.dtype != object)


@pytest.mark.parametrize("name", QUICK)
def test_looking_does_not_change_the_search(name):
    watched, unwatched = (method_of(name).start(Space(dim=DIM), 100, seed=1) for _ in range(2))
    for one, other in zip(rounds(watched, 100), rounds(unwatched, 100), strict=True):
        watched.recommend()[:] = 7.0
        for value in watched.state_dict().values():
            if isinstance(value, np.ndarray):
                value[...] = 9.0
        watched.ask(3)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", QUICK)
def test_inputs_are_left_alone(name):
    search = method_of(name).start(Space(dim=DIM), 100, seed=1)
    for _ in range(4):
        thetas = search.ask(9)
        losses = sphere(thetas)
        losses[-1] = np.nan
        before = thetas.copy(), losses.copy()
        thetas.flags.writeable = losses.flags.writeable = False
        search.tell(thetas, Feedback(losses=losses))
        np.testing.assert_array_equal(thetas, before[0])
        np.testing.assert_array_equal(losses, before[1])


@pytest.mark.parametrize("name", QUICK)
def test_seeds_differ_and_repeat(name):
    one, same, other = (np.concatenate(run(name, 60, seed=seed)[1]) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("name", SCALAR)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_answers_keep_candidates_finite(name, data):
    search = method_of(name).start(Space(dim=3), 60, seed=1)
    for _ in range(8):
        thetas = search.ask(data.draw(st.integers(1, 12)))
        assert np.isfinite(thetas).all()
        value = st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf"), 0.0])
        losses = data.draw(st.lists(value, min_size=len(thetas), max_size=len(thetas)))
        search.tell(thetas, Feedback(losses=np.array(losses)))
    assert np.isfinite(search.recommend()).all()
