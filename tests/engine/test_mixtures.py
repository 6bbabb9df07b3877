"""Mixtures of templates: the gradient, the simplex, what validation decides."""

from __future__ import annotations

import numpy as np
import pytest

from engine.heads import restore
from engine.heads.template_mixture import _slope, ensemble, fit_mixture

T, C, E, SCALE = 5, 3, 8, 10.0


def normalised(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def world(seed=0):
    """Templates of which the third alone knows the classes."""
    random = np.random.default_rng(seed)
    centres = normalised(random.normal(size=(C, E)))
    text = normalised(random.normal(size=(T, C, E)))
    text[2] = normalised(centres + 0.1 * random.normal(size=(C, E)))
    splits = []
    for n in (45, 15, 300):
        labels = np.arange(n) % C
        splits.append((normalised(centres[labels] + 0.25 * random.normal(size=(n, E))), labels))
    return text, *splits


def test_the_gradient_is_the_slope():
    text, (features, labels), *_ = world()
    flat = text.reshape(T, -1).astype(float)
    weights, h = np.random.default_rng(1).dirichlet(np.ones(T)), 1e-6
    _, slope = _slope(weights, flat, features.astype(float), labels, SCALE)
    for t in range(T):
        up, down = (
            _slope(weights + s * h * np.eye(T)[t], flat, features.astype(float), labels, SCALE)[0] for s in (1, -1)
        )
        assert slope[t] == pytest.approx((up - down) / (2 * h), abs=1e-5)


def test_weights_lie_on_the_simplex_and_find_the_good_template():
    text, train, val, (features, labels) = world()
    head = fit_mixture(text, train, val, SCALE)
    assert (head.weights >= 0).all() and head.weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert head.weights.argmax() == 2
    right = (head.scores(features).argmax(-1) == labels).mean()
    assert right > (ensemble(text, val, SCALE).scores(features).argmax(-1) == labels).mean() + 0.05
    again = restore(head.kind, head.state_dict())
    np.testing.assert_array_equal(again.scores(features), head.scores(features))


def test_validation_may_prefer_the_ensemble_or_the_template():
    text, (features, labels), val, _ = world()
    noise = np.random.default_rng(3).integers(0, C, len(labels))
    head = fit_mixture(text, (features, noise), val, SCALE)
    alone = ensemble(text[:1], val, SCALE)
    assert head.val_loss <= min(ensemble(text, val, SCALE).val_loss, alone.val_loss) + 1e-6


def test_the_ensemble_is_the_normalised_mean():
    text, _, val, _ = world()
    np.testing.assert_allclose(ensemble(text, val, SCALE).text, normalised(text.mean(0)), atol=1e-6)
