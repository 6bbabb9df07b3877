"""Nevergrad by name: batches, order, failures, replay; CMA scripts against pycma itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from engine.errors import ArtifactError, RecipeError
from engine.protocols import Feedback
from engine.search import make
from engine.search.sharpzo import BptVlm, SharpZo
from engine.search_space import Space


def sphere(thetas):
    return ((thetas.astype(np.float64) - 1.0) ** 2).sum(1)


def everything_asked(search, budget, batch, losses=sphere):
    asked, done = [], 0
    while done < budget:
        thetas = search.ask(min(batch, budget - done))
        done += len(thetas)
        asked.append(thetas)
        search.tell(thetas, Feedback(losses=losses(thetas)))
    return np.concatenate(asked)


@pytest.mark.parametrize("name", ["DiagonalCMA", "DE", "PSO", "TBPSA"])
def test_candidates_do_not_depend_on_how_the_loop_cuts_batches(name):
    streams = [
        everything_asked(make(f"nevergrad:{name}", {"batch": 12}).start(Space(dim=6), 100, seed=1), 100, batch)
        for batch in (1, 5, 12, 100)
    ]
    for stream in streams[1:]:
        assert stream.tobytes() == streams[0].tobytes()


@pytest.mark.parametrize("name", ["DiagonalCMA", "CMA", "NGOpt"])
def test_many_dimensions_whose_populations_are_larger_than_a_batch(name):
    """pycma adapts its step otherwise there, and refuses to be asked for half of the next population."""
    dim = 2560 if name == "DiagonalCMA" else 400
    asked = everything_asked(make(f"nevergrad:{name}").start(Space(dim=dim), 120, seed=1), 120, 50)
    assert len(asked) >= 100 and np.isfinite(asked).all()


def test_sigma_is_the_initial_scale():
    for sigma in (0.1, 0.5):
        asked = everything_asked(
            make("nevergrad:DiagonalCMA", {"sigma": sigma, "batch": 40}).start(Space(dim=50), 41, seed=1), 41, 41
        )
        assert asked[1:].std() == pytest.approx(sigma, rel=0.1)
        assert abs(asked[1:].mean()) < 0.1 * sigma


def test_optimizers_that_cannot_batch_run_one_by_one_and_say_so(caplog):
    with caplog.at_level(logging.WARNING):
        search = make("nevergrad:SPSA").start(Space(dim=4), 50, seed=1)
    assert "one by one" in caplog.text and "SPSA" in caplog.text
    search.tell(search.ask(9), Feedback(losses=np.array([1.0])))
    assert len(search.ask(9)) == 1


def test_the_best_candidate_is_recommended_or_the_optimizers_own():
    for which in ("best", "optimizer"):
        search = make("nevergrad:TBPSA", {"recommend": which, "batch": 10}).start(Space(dim=5), 200, seed=1)
        assert not search.recommend().any()
        asked = everything_asked(search, 200, 10)
        best = asked[sphere(asked).argmin()]
        assert np.array_equal(search.recommend(), best) == (which == "best")
        assert sphere(search.recommend()[None])[0] < 5.0


def test_a_replay_that_asks_for_others_is_refused():
    search = make("nevergrad:DE").start(Space(dim=4), 60, seed=1)
    everything_asked(search, 40, 10)
    with pytest.raises(ArtifactError, match="other candidates"):
        make("nevergrad:DE").start(Space(dim=4), 60, seed=2).load_state_dict(search.state_dict())
    other = BptVlm().start(Space(dim=4), 100, seed=1)
    everything_asked(other, 70, 10)
    with pytest.raises(ArtifactError, match="other candidates"):
        BptVlm().start(Space(dim=4), 100, seed=2).load_state_dict(other.state_dict())


def test_numpys_global_random_state_is_left_alone():
    np.random.seed(7)
    expected = np.random.RandomState(7).rand()
    everything_asked(make("nevergrad:TwoPointsDE").start(Space(dim=4), 60, seed=1), 60, 10)
    assert np.random.rand() == expected


@pytest.mark.parametrize("name", ["DiagonalCM", "nothing at all"])
def test_an_unknown_optimizer_is_refused_with_the_nearest(name):
    with pytest.raises(RecipeError, match="DiagonalCMA"):
        make(f"nevergrad:{name}")


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"batch": 0}, {"recommend": "mean"}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RecipeError):
        make("nevergrad:CMA", wrong)


def test_bpt_vlm_is_pycma_itself():
    import cma

    from engine.random_streams import Purpose, rng

    asked = everything_asked(BptVlm(popsize=12, sigma=0.5).start(Space(dim=6), 121, seed=4), 121, 7)
    words = rng(4, 0, Purpose.OPTIMIZER).integers(0, 2**32, 8, dtype=np.uint32)
    oracle = cma.CMAEvolutionStrategy(
        np.zeros(6), 0.5, {"popsize": 12, "randn": np.random.RandomState(words).randn, "seed": np.nan, "verbose": -9}
    )
    for generation in range(10):
        samples = oracle.ask()
        ours = asked[1 + 12 * generation :][:12]
        np.testing.assert_array_equal(ours, np.array(samples, np.float32))
        oracle.tell(samples, list(sphere(ours)))


def test_sharpzo_shifts_its_samples_uphill_by_rho():
    """On a linear loss the coordinate gradient is exact, so that the shift is known."""
    slope = np.array([3.0, -4.0, 0.0, 0.0])
    method = SharpZo(popsize=8, rho=0.1, sigma=0.3, unit=1.0)
    search = method.start(Space(dim=4), 1000, seed=1)
    asked = everything_asked(search, 17, 100, lambda thetas: thetas.astype(np.float64) @ slope)
    np.testing.assert_allclose(asked[1:5], 1e-3 * np.eye(4), atol=1e-9)
    np.testing.assert_allclose(asked[5:9], -1e-3 * np.eye(4), atol=1e-9)
    unshifted = SharpZo(popsize=8, rho=0.0, sigma=0.3).start(Space(dim=4), 1000, seed=1)
    others = everything_asked(unshifted, 17, 100, lambda thetas: thetas.astype(np.float64) @ slope)
    np.testing.assert_allclose(asked[9:] - others[9:], np.tile(0.1 * slope / 5, (8, 1)), atol=1e-4)


def test_sharpzos_second_stage_keeps_half_of_the_coordinates():
    search = SharpZo(popsize=8, switch=0.3).start(Space(dim=10), 300, seed=1)
    asked = everything_asked(search, 300, 64)
    up, down = asked[-2:].astype(np.float64)
    assert ((up - down) != 0).sum() == 5
