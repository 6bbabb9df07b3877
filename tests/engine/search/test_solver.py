"""The query-free inner problem against scipy and finite differences, from scores and from features."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import approx_fprime, check_grad, minimize

from engine.search import solver, tables
from engine.search.solver import Target, solve, sums
from engine.search.tables import Features, Scores, mixed

B, C, E, K, n = 10, 4, 6, 5, 7
LABELS = np.arange(B) % C
KINDS = ("scores", "mixed scores", "text", "image", "joint")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def problem(kind):
    random = np.random.default_rng(0)
    mix = random.standard_normal((K, n)) / 2
    if kind == "scores":
        return Scores(base=random.standard_normal((B, C)), tables=random.standard_normal((K, B, C)))
    if kind == "mixed scores":
        return Scores(base=random.standard_normal((B, C)), tables=random.standard_normal((n, B, C)), mix=mix)
    table = Features(text=unit(random.standard_normal((C, E))), image=unit(random.standard_normal((B, E))), scale=8.0)
    if kind in ("text", "joint"):
        table = replace(table, text_columns=0.3 * random.standard_normal((K, C, E)))
    if kind in ("image", "joint"):
        table = replace(table, image_tables=0.3 * random.standard_normal((n, B, E)), mix=mix)
    return table


def target_of(weight):
    anchor = Scores(base=np.random.default_rng(1).standard_normal((B, C)))
    return Target(labels=LABELS, weight=weight, anchor=anchor if weight else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_gradient_and_minimum(kind, weight):
    table, target, precision = problem(kind), target_of(weight), 0.5 * np.eye(K)

    def value(a):
        return sums(table, target, a).loss / B + 0.5 * a @ precision @ a

    def slope(a):
        return sums(table, target, a).gradient / B + precision @ a

    assert check_grad(value, slope, np.full(K, 0.1)) < 1e-4
    ours = solve(table, target, precision)
    theirs = minimize(value, np.zeros(K), jac=slope, method="BFGS", options={"gtol": 1e-8})
    assert value(ours) < theirs.fun + 1e-5
    linear, start = np.linspace(-1, 1, K), np.full(K, 0.7)
    moved = solve(table, target, precision, linear, start)
    assert value(moved) + linear @ moved < value(start) + linear @ start


def test_the_loss_is_cross_entropy_to_labels_and_anchor():
    table, target, a = problem("text"), target_of(0.3), np.linspace(-0.5, 0.5, K)
    logits = 8.0 * table.image @ unit(table.text + np.tensordot(a, table.text_columns, 1)).T

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    wanted = 0.7 * np.eye(C)[LABELS] + 0.3 * np.exp(log_softmax(target.anchor.base))
    assert sums(table, target, a, slopes=False).loss == pytest.approx(-(wanted * log_softmax(logits)).sum(), rel=1e-6)


@pytest.mark.parametrize("kind", ["mixed scores", "text", "image"])
def test_the_whole_hessian_is_the_gradients_derivative(kind):
    table, target, a = problem(kind), target_of(0.3), np.full(K, 0.1)
    found, rest = solver._hessian(table, target, a, whole=True)
    expected = approx_fprime(a, lambda x: sums(table, target, x).gradient, 1e-6)
    np.testing.assert_allclose(found + rest, expected, atol=2e-3)
    assert np.linalg.eigvalsh(sums(table, target, a).hessian)[0] > -1e-9
    assert (kind == "mixed scores") == (not rest.any())


def test_newton_takes_few_steps(monkeypatch):
    steps = []
    hessian = solver._hessian
    monkeypatch.setattr(solver, "_hessian", lambda *args, **kw: steps.append(1) or hessian(*args, **kw))
    solve(problem("image"), target_of(0.0), 0.5 * np.eye(K))
    assert 1 <= len(steps) <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_rows_add_up(kind):
    table, target, a = problem(kind), target_of(0.3), np.linspace(-1, 1, K)
    whole = sums(table, target, a)
    one, two = (sums(table.some(rows), target.some(rows), a) for rows in (slice(0, 3), slice(3, B)))
    parts = one + two
    assert whole.rows == parts.rows == B
    for name in ("loss", "gradient", "hessian"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_change_nothing(kind, monkeypatch):
    table, target, a = problem(kind), target_of(0.3), np.linspace(-1, 1, K)
    whole, there = sums(table, target, a), solve(table, target, np.eye(K))
    monkeypatch.setattr(tables, "BLOCK", 30)
    monkeypatch.setattr(tables, "MIXED", 0)
    parts = sums(table, target_of(0.3), a)
    for name in ("loss", "gradient", "hessian"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), atol=1e-5)
    np.testing.assert_allclose(solve(table, target, np.eye(K)), there, atol=1e-6)
    several = np.arange(n * B * C, dtype=np.float32).reshape(n, B, C)
    mix = np.random.default_rng(2).standard_normal((K, n))
    np.testing.assert_allclose(mixed(mix, several), np.einsum("kn,nbc->kbc", mix, several))


def test_a_large_tables_hessian_is_that_of_spaced_rows():
    table, target, a = problem("text"), target_of(0.3), np.full(K, 0.1)
    found = sums(table, target, a, curved=B * C * K // 3).hessian  # every fourth row: 0, 4 and 8
    spaced = slice(None, None, 4)
    np.testing.assert_allclose(found, sums(table.some(spaced), target.some(spaced), a).hessian * B / 3, rtol=1e-5)


def test_memory_is_that_of_blocks_and_not_of_the_table():
    random = np.random.default_rng(0)
    rows, classes, width, columns = 4000, 200, 16, 20
    table = Features(
        text=unit(random.standard_normal((classes, width))),
        image=unit(random.standard_normal((rows, width))),
        text_columns=random.standard_normal((columns, classes, width)),
        scale=20.0,
    )
    target = Target(labels=np.arange(rows) % classes)
    tracemalloc.start()
    solve(table, target, np.eye(columns))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 < rows * classes * columns * 8 / 2
