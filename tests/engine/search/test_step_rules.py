"""Updates against their equations, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.errors import RecipeError
from engine.search.step_rules import (
    Adam,
    ClipByNorm,
    HeavyBall,
    LookAhead,
    Momentum,
    Normalise,
    Schedule,
    chain,
)

THETA = np.array([1.0, -2.0, 0.5])
GRADIENTS = np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [-1.0, 1.0, 1.0]])


def steps_of(update):
    state, steps = update.init(THETA), []
    for gradient in GRADIENTS:
        step, state = update.update(gradient, state, THETA)
        steps.append(step)
    return np.array(steps)


def test_momentum_is_a_weighted_mean_of_gradients():
    expected = [
        GRADIENTS[0],
        (0.9 * GRADIENTS[0] + GRADIENTS[1]) / 1.9,
        (0.81 * GRADIENTS[0] + 0.9 * GRADIENTS[1] + GRADIENTS[2]) / 2.71,
    ]
    np.testing.assert_allclose(steps_of(Momentum(beta=0.9)), expected)


def test_look_ahead_is_blackvips():
    m1 = GRADIENTS[0]
    m2 = 0.9 * m1 + GRADIENTS[1]
    m3 = 0.9 * m2 + GRADIENTS[2]
    expected = [GRADIENTS[i] + 0.9 * m for i, m in enumerate((m1, m2, m3))]
    np.testing.assert_allclose(steps_of(LookAhead(beta=0.9)), expected)


def test_heavy_ball_never_forgets_at_beta_one():
    np.testing.assert_allclose(steps_of(HeavyBall(beta=1.0)), np.cumsum(GRADIENTS, axis=0))


def test_adam_is_its_equation():
    ours = chain(Adam(weight_decay=0.01), Schedule(size=0.1))
    here, state, theirs = THETA.copy(), ours.init(THETA), THETA.copy()
    m = v = np.zeros(3)
    for t, gradient in enumerate(GRADIENTS, 1):
        step, state = ours.update(gradient, state, here)
        here = here - step
        g = gradient + 0.01 * theirs
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        theirs = theirs - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(here, theirs, rtol=1e-12)


def test_sizes():
    gradient = np.array([3.0, 4.0, 0.0])
    for update, expected in [
        (ClipByNorm(limit=1.0), gradient / 5),
        (ClipByNorm(limit=6.0), gradient),
        (Normalise(), gradient / 5),
        (Schedule(size=0.5), gradient / 2),
    ]:
        np.testing.assert_allclose(update.update(gradient, update.init(THETA), THETA)[0], expected)
    np.testing.assert_array_equal(Normalise().update(np.zeros(3), {}, THETA)[0], np.zeros(3))


def test_schedules_see_progress():
    cosine = Schedule(size=2.0, shape="cosine", floor=0.1)
    assert [cosine.at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.1, 0.2])
    power = Schedule(size=0.01, shape="power", alpha=0.4, offset=1.0, horizon=500)
    assert power.at(0.0) == pytest.approx(0.01 / 2**0.4)
    assert power.at(1.0) == pytest.approx(0.01 / 502**0.4)
    assert Schedule(size=3.0).at(0.7) == 3.0


def test_a_chain_keeps_each_members_state_apart():
    both = chain(Momentum(beta=0.5), Adam(), Schedule(size=0.1))
    state = both.init(THETA)
    assert set(state) == {"0.t", "0.m", "1.t", "1.m", "1.v"}
    before = {key: value.copy() for key, value in state.items()}
    _, after = both.update(GRADIENTS[0], state, THETA, progress=0.5, loss=math.nan)
    for key in before:
        np.testing.assert_array_equal(state[key], before[key])
    assert float(after["1.t"]) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Momentum(beta=1.0),
        lambda: LookAhead(beta=-0.1),
        lambda: HeavyBall(beta=1.5),
        lambda: Adam(beta2=1.0),
        lambda: Schedule(size=1.0, shape="cosin"),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RecipeError):
        wrong()
