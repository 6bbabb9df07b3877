"""The query-free inner problem against scipy, from scores and from features."""

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from engine.search.solver import Features, Scores, Target, solve, sums

LABELS = np.arange(10) % 4


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problems():
    random = np.random.default_rng(0)
    scores = Scores(base=random.standard_normal((10, 4)), tables=random.standard_normal((5, 10, 4)))
    features = Features(
        text=normalised(random.standard_normal((4, 6))),
        image=normalised(random.standard_normal((10, 6))),
        text_columns=random.standard_normal((5, 4, 6)),
        image_tables=None,
        mix=None,
        scale=8.0,
    )
    return {"scores": scores, "features": features}


@pytest.mark.parametrize("kind", ["scores", "features"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_gradient_and_minimum(kind, weight):
    table = problems()[kind]
    anchor = Scores(base=np.random.default_rng(1).standard_normal((10, 4)))
    target = Target(labels=LABELS, weight=weight, anchor=anchor if weight else None)
    precision = 0.5 * np.eye(5)

    def value(a):
        return sums(table, target, a).loss / 10 + 0.5 * a @ precision @ a

    def slope(a):
        return sums(table, target, a).gradient / 10 + precision @ a

    assert check_grad(value, slope, np.full(5, 0.1)) < 1e-4
    ours = solve(table, target, precision)
    theirs = minimize(value, np.zeros(5), jac=slope, method="BFGS", options={"gtol": 1e-8})
    assert value(ours) < theirs.fun + 1e-4


def test_rows_add_up():
    table, target = problems()["scores"], Target(labels=LABELS)
    a = np.linspace(-1, 1, 5)
    whole = sums(table, target, a)
    parts = [sums(table.some(rows), Target(labels=LABELS[rows]), a) for rows in (slice(0, 3), slice(3, 10))]
    assert whole.rows == sum(part.rows for part in parts)
    np.testing.assert_allclose(whole.loss, sum(part.loss for part in parts))
    np.testing.assert_allclose(whole.gradient, sum(part.gradient for part in parts))
    np.testing.assert_allclose(whole.hessian, sum(part.hessian for part in parts))
