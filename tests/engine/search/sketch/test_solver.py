"""The query-free inner problem against scipy and finite differences, from scores and from features, in one or parts."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from engine.search.sketch import solver, tables
from engine.search.sketch.solver import mean_loss, solve
from engine.search.sketch.tables import Features, Scores

B, C, E, K, n = 10, 4, 6, 5, 7
LABELS = np.arange(B) % C
KINDS = [(kind, parts) for kind in ("scores", "text") for parts in (1, C)] + [("image", 1), ("joint", 1)]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(kind):
    random = np.random.default_rng(0)
    if kind == "scores":
        return Scores(base=random.standard_normal((C, B)), moves=random.standard_normal((n, C, B)))
    table = Features(text=unit(random.standard_normal((C, E))), image=unit(random.standard_normal((B, E))), scale=8.0)
    if kind in ("text", "joint"):
        table = replace(table, text_moves=0.3 * random.standard_normal((n, C, E)))
    if kind in ("image", "joint"):
        table = replace(table, image_moves=0.3 * random.standard_normal((n, B, E)))
    return table


def mix_of(parts):
    return np.random.default_rng(2).standard_normal((parts, K, n)) / 2


def ridge(a):
    return 0.25 * float(np.vdot(a, a)), 0.5 * a


@pytest.mark.parametrize(("kind", "parts"), KINDS)
def test_gradient_and_minimum(kind, parts):
    table, mix = problem(kind), mix_of(parts)

    def value(flat):
        a = flat.reshape(parts, K)
        return mean_loss(table, LABELS, np.einsum("gk,gkn->gn", a, mix))[0] + ridge(a)[0]

    def slope(flat):
        a = flat.reshape(parts, K)
        by_weights = mean_loss(table, LABELS, np.einsum("gk,gkn->gn", a, mix))[1]
        return (np.einsum("gkn,gn->gk", mix, by_weights) + ridge(a)[1]).ravel()

    assert check_grad(value, slope, np.full(parts * K, 0.1)) < 1e-4
    ours = solve(table, LABELS, mix, ridge)
    theirs = minimize(value, np.zeros(parts * K), jac=slope, method="BFGS", options={"gtol": 1e-8})
    assert ours.shape == (parts, K) and value(ours.ravel()) < theirs.fun + 1e-4
    start = np.full((parts, K), 0.7)
    assert value(solve(table, LABELS, mix, ridge, start).ravel()) < value(start.ravel())


def test_the_loss_is_cross_entropy_to_labels():
    table, weights = problem("text"), np.linspace(-0.5, 0.5, n)[None]
    logits = 8.0 * table.image @ unit(table.text + np.tensordot(weights[0], table.text_moves, 1)).T
    wanted = -np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(B), LABELS].mean()
    assert mean_loss(table, LABELS, weights, slopes=False)[0] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", ["scores", "text"])
def test_each_class_goes_by_the_weights_of_its_part(kind):
    """Equal parts are one part; a part of its own moves its class alone."""
    table, weights = problem(kind), np.random.default_rng(3).standard_normal((1, n))
    together = table.at(weights).logits(slice(None))
    np.testing.assert_allclose(table.at(np.repeat(weights, C, 0)).logits(slice(None)), together, rtol=1e-12)
    alone = np.zeros((C, n))
    alone[2] = weights
    found = table.at(alone).logits(slice(None))
    np.testing.assert_allclose(found[:, 2], together[:, 2], rtol=1e-12)
    still = table.at(np.zeros((1, n))).logits(slice(None))
    np.testing.assert_allclose(np.delete(found, 2, 1), np.delete(still, 2, 1), rtol=1e-12)


@pytest.mark.parametrize(("kind", "parts"), KINDS)
def test_blocks_and_single_precision_change_next_to_nothing(kind, parts, monkeypatch):
    table, mix = problem(kind), mix_of(parts)
    weights = np.random.default_rng(4).standard_normal((parts, n))
    whole, there = mean_loss(table, LABELS, weights), solve(table, LABELS, mix, ridge)
    monkeypatch.setattr(tables, "BLOCK", 30)
    split = mean_loss(table, LABELS, weights)
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(split[1], whole[1], atol=1e-6)
    monkeypatch.setattr(solver, "SMALL", 0)
    names = [name for name in ("moves", "text_moves", "image_moves") if getattr(table, name, None) is not None]
    single = replace(table, **{name: getattr(table, name).astype(np.float32) for name in names})
    np.testing.assert_allclose(solve(single, LABELS, mix, ridge), there, atol=2e-2)


def test_memory_is_that_of_blocks_and_not_of_the_table():
    random = np.random.default_rng(0)
    rows, classes, width, count = 4000, 200, 16, 20
    table = Features(
        text=unit(random.standard_normal((classes, width))),
        image=unit(random.standard_normal((rows, width))),
        text_moves=random.standard_normal((count, classes, width)).astype(np.float32),
        scale=20.0,
    )
    labels = np.arange(rows) % classes
    tracemalloc.start()
    solve(table, labels, np.eye(count)[None], ridge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 < rows * classes * count * 8 / 2
