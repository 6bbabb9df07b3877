"""Each ablation takes out of `sketch` what it names."""

from __future__ import annotations

import numpy as np
import pytest

from bench.search import ablation
from bench.search.arms import Setting, run
from engine import search as methods
from engine.protocols import Feedback, Outputs
from engine.search_space import Space


@pytest.fixture
def world():
    """A linear map to scores, of a few rows, and what answers for it."""
    random = np.random.default_rng(0)
    A, base, labels = random.normal(size=(12, 6 * 3)), random.normal(size=(6, 3)), random.integers(0, 3, 6)

    def answer(thetas):
        scores = base + (thetas @ A).reshape(-1, 6, 3)
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        losses = -logs[:, np.arange(6), labels].mean(-1)
        return Feedback(losses=losses, outputs=Outputs(scores=scores.astype(np.float32)), labels=labels)

    return answer


def begun(name: str, world, **options):
    method = methods.make(name, options)
    found = method.start(Space(dim=12), 200, 1)
    if hasattr(found, "look_inside"):
        found.look_inside(world, world(np.zeros((1, 12))).labels)
    return found


def gradient_at_zero(world):
    nudges = 1e-4 * np.concatenate([np.eye(12), -np.eye(12)])
    losses = world(nudges).losses
    return losses[:12] - losses[12:]


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_gradient_steps_go_down_the_slope_that_the_table_tells(world):
    # As many probes as dimensions: the Jacobian is known, and in all directions alike.
    found, whole = begun("bench.search.ablation:GradientSteps", world, k=12), begun("sketch", world, k=12)
    for one in (found, whole):
        thetas = one.ask(13)
        one.tell(thetas, world(thetas))
    (step, *_), (newton, *_) = found.ask(13), whole.ask(13)
    assert cosine(step, -gradient_at_zero(world)) > 0.999
    assert cosine(newton, -gradient_at_zero(world)) < 0.99


def test_losses_only_see_the_losses(world):
    def spoilt(thetas):
        told = world(thetas)
        return Feedback(losses=told.losses, outputs=Outputs(scores=-told.outputs.scores), labels=told.labels)

    found, other = begun("bench.search.ablation:LossesOnly", world), begun("bench.search.ablation:LossesOnly", world)
    before = world(found.recommend()[None]).losses[0]
    for _ in range(12):
        thetas = found.ask(10)
        assert np.array_equal(thetas, other.ask(10))
        found.tell(thetas, world(thetas))
        other.tell(thetas, spoilt(thetas))
    assert world(found.recommend()[None]).losses[0] < 0.8 * before


def test_true_directions_begin_with_the_gradient_and_hold_the_curvature(world):
    found = begun("bench.search.ablation:TrueDirections", world, k=4)
    base, *probes = found.ask(5)
    assert not base.any()
    assert abs(cosine(probes[0], gradient_at_zero(world))) > 0.999
    # Of all subspaces with the gradient in it, none of random ones bends the loss as much.
    assert curvature(world, probes) > max(curvature(world, draw) for draw in random_subspaces(probes[0]))


def curvature(world, directions):
    Q = np.linalg.qr(np.stack(directions).T.astype(float))[0].T
    h = 1e-2
    zero = world(np.zeros((1, 12))).losses[0]
    return float((world(h * Q).losses + world(-h * Q).losses - 2 * zero).sum() / h**2)


def random_subspaces(first):
    random = np.random.default_rng(1)
    return [[first, *random.normal(size=(3, 12))] for _ in range(20)]


def test_all_parts_run_as_anybodys_methods(tmp_path):
    arms = ablation.arms()
    setting = Setting(tasks=("toy:",), seeds=(1,), box="toy:", shots=4)
    rows = run(arms, [40.0], setting, tmp_path)
    assert [row["label"] for row in rows] == [arm.label for arm in arms]
    template = next(iter(run([arms[0]], [1.0], setting, tmp_path / "template")))["best_loss"]
    assert len({row["best_loss"] for row in rows}) == len(arms) and max(row["best_loss"] for row in rows) < template
