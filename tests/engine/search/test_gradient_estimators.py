"""Estimates of a gradient: unbiased on linear functions, exact where they can be, sound with answers missing."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import RecipeError
from engine.search.gradient_estimators import DIRECTIONS, OneSided, Pairs, Spsa

DIM = 12
SLOPE = np.linspace(-1.0, 2.0, DIM)
THETA = np.linspace(0.5, 1.5, DIM)
ONE_SIDED = [OneSided(k=4, h=0.05, directions=directions) for directions in DIRECTIONS]
PAIRED = [Pairs(k=3, h=0.05, directions="gaussian"), Spsa(k=3, h=0.05)]


def answers(probes, function):
    return np.array([function(THETA), *(function(THETA + probe) for probe in probes)])


def linear(theta):
    return 3.0 + SLOPE @ theta


@pytest.mark.parametrize("estimator", [*ONE_SIDED, *PAIRED], ids=repr)
def test_unbiased_on_a_linear_function(estimator):
    rng = np.random.default_rng(5)
    estimates = []
    for _ in range(6000):
        probes = estimator.probes(THETA, rng)
        estimates.append(estimator.gradient(THETA, probes, answers(probes, linear)))
    error = np.mean(estimates, axis=0) - SLOPE
    standard = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    # 12 coordinates within 4 standard errors, and these are small beside the slope itself.
    assert (np.abs(error) < 4 * standard).all()
    assert np.linalg.norm(standard) < 0.05 * np.linalg.norm(SLOPE)


@pytest.mark.parametrize("directions", list(DIRECTIONS))
def test_directions_have_identity_covariance(directions):
    u = DIRECTIONS[directions](np.random.default_rng(0), 4, 6)
    assert u.shape == (4, 6)
    many = np.concatenate([DIRECTIONS[directions](np.random.default_rng(i), 4, 6) for i in range(5000)])
    np.testing.assert_allclose(many.T @ many / len(many), np.eye(6), atol=0.06)


def test_orthonormal_probes_are_exact_at_k_equal_to_d():
    estimator = OneSided(k=DIM, h=0.05)
    probes = estimator.probes(THETA, np.random.default_rng(1))
    np.testing.assert_allclose(probes @ probes.T, 0.05**2 * DIM * np.eye(DIM), atol=1e-12)
    np.testing.assert_allclose(estimator.gradient(THETA, probes, answers(probes, linear)), SLOPE, atol=1e-10)


def test_more_orthonormal_probes_than_dimensions_come_in_blocks():
    estimator = OneSided(k=2 * DIM, h=0.1)
    probes = estimator.probes(THETA, np.random.default_rng(1))
    assert probes.shape == (2 * DIM, DIM)
    np.testing.assert_allclose(estimator.gradient(THETA, probes, answers(probes, linear)), SLOPE, atol=1e-10)


def test_relative_squared_error_of_orthonormal_probes_is_d_minus_k_over_k():
    estimator, rng = OneSided(k=6, h=1.0), np.random.default_rng(2)
    errors = []
    for _ in range(4000):
        probes = estimator.probes(THETA, rng)
        errors.append(((estimator.gradient(THETA, probes, answers(probes, linear)) - SLOPE) ** 2).sum())
    assert np.mean(errors) / (SLOPE @ SLOPE) == pytest.approx((DIM - 6) / 6, rel=0.05)


@pytest.mark.parametrize("estimator", PAIRED, ids=repr)
def test_pairs_cancel_even_order_error(estimator):
    curved = [lambda theta: linear(theta) + 50 * ((theta - THETA) ** 2).sum(), linear]
    probes = estimator.probes(THETA, np.random.default_rng(3))
    estimates = [estimator.gradient(THETA, probes, answers(probes, function)) for function in curved]
    np.testing.assert_allclose(*estimates, rtol=1e-8)


@pytest.mark.parametrize("estimator", [*ONE_SIDED, *PAIRED], ids=repr)
def test_missing_answers_are_left_out(estimator):
    probes = estimator.probes(THETA, np.random.default_rng(4))
    losses = answers(probes, linear)
    kept = estimator.gradient(THETA, probes[2:], np.append(losses[0], losses[3:]))
    losses[1] = np.nan
    if estimator.block == 1:
        kept = estimator.gradient(THETA, probes[1:], np.append(losses[0], losses[2:]))
    np.testing.assert_allclose(estimator.gradient(THETA, probes, losses), kept)
    losses[1:] = np.nan
    assert np.isnan(estimator.gradient(THETA, probes, losses)).all()


def test_spsa_divides_elementwise():
    estimator = Spsa(k=1, h=0.01)
    probes = estimator.probes(THETA, np.random.default_rng(5))
    assert ((np.abs(probes) >= 0.005) & (np.abs(probes) <= 0.01)).all()
    np.testing.assert_array_equal(probes[0], -probes[1])
    losses = np.array([np.nan, 1.25, 0.75])
    np.testing.assert_allclose(estimator.gradient(THETA, probes, losses), 0.25 / probes[0])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"h": 0.0}, {"h": float("nan")}, {"directions": "sphre"}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RecipeError):
        OneSided(**wrong)
