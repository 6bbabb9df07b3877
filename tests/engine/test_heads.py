"""Heads: against scikit-learn and closed forms, chosen on validation, same bits twice, back from their state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from scipy.optimize import check_grad

from engine import search
from engine.errors import ArtifactError, RecipeError, RefusedError, TaskError
from engine.heads import HEADS, Head, fit, on_scores, restore, validated
from engine.heads.gda import fit_gda
from engine.heads.linear import STRENGTHS, _Problem, fit_linear
from engine.heads.tip import CacheHead
from engine.objectives import cross_entropy
from engine.protocols import Array, Outputs

CLASSES, WIDTH, SCALE = 4, 32, 20.0
ON_FEATURES = [name for name in HEADS if not on_scores(name) and name != "auto"]  # on scores: test_score_heads.py


def normalised(values: Array) -> Array:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def world(seed: int = 0) -> tuple[dict[str, tuple[Array, Array]], Array]:
    """Features in a narrow cone, as CLIP's are, and text features that know the classes only roughly."""
    random = np.random.default_rng(seed)
    centre, means = random.normal(size=WIDTH) * 2, random.normal(size=(CLASSES, WIDTH))
    splits = {}
    for split, count in (("train", 8), ("val", 4), ("test", 100)):
        labels = np.repeat(np.arange(CLASSES), count)
        noise = random.normal(size=(len(labels), WIDTH))
        splits[split] = normalised(centre + means[labels] + 0.8 * noise), labels
    return splits, normalised(means + 1.2 * random.normal(size=means.shape))


def loss(scores: Array, labels: Array) -> float:
    return float(cross_entropy(Outputs(scores=scores[None]), labels)[0])


def accuracy(scores: Array, labels: Array) -> float:
    return float((scores.argmax(-1) == labels).mean())


@pytest.mark.parametrize("name", ON_FEATURES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_head_beats_zero_shot_on_new_images(name: str, seed: int) -> None:
    splits, text = world(seed)
    head = fit(name, splits["train"], splits["val"], text, SCALE, seed)
    features, labels = splits["test"]
    scores = head.scores(features)
    assert scores.shape == (len(labels), CLASSES) and scores.dtype == np.float32
    assert accuracy(scores, labels) > accuracy(features @ text.T, labels) + 0.03
    assert head.val_loss == pytest.approx(loss(head.scores(splits["val"][0]), splits["val"][1]), abs=1e-9)


@pytest.mark.parametrize("name", [name for name in ON_FEATURES if name != "linear"])
def test_anchored_heads_choose_nothing_worse_than_zero_shot_on_validation(name: str) -> None:
    splits, text = world(3)
    # Labels that say nothing: there is nothing to learn from them.
    train = splits["train"][0], np.random.default_rng(1).permutation(splits["train"][1])
    head = fit(name, train, splits["val"], text, SCALE)
    features, labels = splits["val"]
    assert head.val_loss <= loss(SCALE * features @ text.T, labels) + 1e-6


@pytest.mark.parametrize("name", ON_FEATURES)
def test_the_same_bits_twice_and_from_its_state(name: str) -> None:
    splits, text = world()
    one, two = (fit(name, splits["train"], splits["val"], text, SCALE, 7) for _ in range(2))
    state = one.state_dict()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    for key, value in two.state_dict().items():
        assert np.array_equal(state[key], value), key
    back = restore(one.kind, state)
    assert (
        np.array_equal(back.scores(splits["test"][0]), one.scores(splits["test"][0])) and back.val_loss == one.val_loss
    )


def test_the_seed_matters_where_weights_are_drawn() -> None:
    splits, text = world()
    one, two = (fit("clip-adapter", splits["train"], splits["val"], text, SCALE, seed).state_dict() for seed in (1, 2))
    assert not np.array_equal(one["down"], two["down"])


@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_linear_is_scikit_learns_logistic_regression(strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    splits, _ = world()
    features, labels = splits["train"]
    centred = features - features.mean(0, dtype=np.float64)
    spread = np.sqrt((centred**2).sum(1).mean())
    oracle = LogisticRegression(C=strength, max_iter=20000, tol=1e-10).fit(centred / spread, labels)
    head = fit_linear(splits["train"], splits["val"], strengths=[strength])
    new = splits["test"][0]
    expected = oracle.predict_log_proba((new - features.mean(0, dtype=np.float64)) / spread)
    scores = head.scores(new).astype(np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    assert np.abs(scores - expected).max() < 5e-3


@pytest.mark.parametrize("anchored", [False, True])
def test_the_gradient_of_linear_is_the_slope(anchored: bool) -> None:
    random = np.random.default_rng(0)
    targets = np.eye(CLASSES)[random.integers(0, CLASSES, 9)]
    cosines = SCALE * random.normal(size=targets.shape) if anchored else None
    problem = _Problem(rows=random.normal(size=(9, 5)), cosines=cosines, targets=targets)
    at = 0.3 * random.normal(size=problem.size)
    assert check_grad(lambda x: problem.loss(x, 2.0)[0], lambda x: problem.loss(x, 2.0)[1], at) < 1e-5


def test_linear_chooses_its_regularisation_on_validation() -> None:
    splits, _ = world()
    chosen = fit_linear(splits["train"], splits["val"])
    losses = {c: fit_linear(splits["train"], splits["val"], strengths=[c]).val_loss for c in STRENGTHS}
    assert chosen.chosen == min(losses, key=losses.__getitem__)
    assert chosen.val_loss == pytest.approx(min(losses.values()), abs=1e-4)


def test_anchored_linear_is_zero_shot_at_its_strongest() -> None:
    splits, text = world()
    head = fit_linear(splits["train"], splits["val"], text, scale=SCALE, strengths=[1e-9])
    assert np.allclose(head.weight, SCALE * text, atol=1e-4) and np.allclose(head.bias, 0, atol=1e-4)
    freer = fit_linear(splits["train"], splits["val"], text, scale=SCALE, strengths=[100.0])
    features, labels = splits["train"]
    assert loss(freer.scores(features), labels) < loss(head.scores(features), labels) - 0.1


def test_auto_is_the_best_on_validation_or_none() -> None:
    splits, text = world()
    every = {name: fit(name, splits["train"], splits["val"], text, SCALE, 7) for name in ON_FEATURES}
    chosen = fit("auto", splits["train"], splits["val"], text, SCALE, 7)
    best_known = min(every.values(), key=lambda head: head.val_loss)
    assert chosen.kind == best_known.kind and chosen.val_loss == best_known.val_loss
    # Where what can be learned is wrong, the prompt stays alone.
    wrong = splits["train"][0], (splits["train"][1] + 1) % CLASSES
    features, labels = splits["val"]
    best = normalised(np.stack([features[labels == label].mean(0) for label in range(CLASSES)]))
    alone = fit("auto", wrong, splits["val"], best, SCALE)
    assert np.allclose(alone.scores(features), SCALE * features @ best.T, atol=1e-4)


def test_gda_is_its_closed_form() -> None:
    splits, text = world()
    (features, labels), val = splits["train"], splits["val"]
    head = fit_gda(splits["train"], val, text, SCALE)
    rows = features.astype(np.float64)
    scatter = np.zeros((WIDTH, WIDTH))
    means = []
    for label in range(CLASSES):
        own = rows[labels == label]
        means.append(own.mean(0))
        scatter += sum(np.outer(row - means[-1], row - means[-1]) for row in own)
    precision = WIDTH * np.linalg.inv(scatter + np.trace(scatter) / (len(rows) - 1) * np.eye(WIDTH))
    expected = []
    for row in splits["test"][0].astype(np.float64):
        density = [-0.5 * (row - mean) @ precision @ (row - mean) for mean in means]
        # The quadratic term of the row is the same for all classes: softmax does not see it.
        common = -0.5 * row @ precision @ row
        expected.append(SCALE * (text @ row) + head.chosen * (np.array(density) - common - np.log(CLASSES)))
    assert np.allclose(head.scores(splits["test"][0]), expected, atol=1e-3)
    assert head.chosen > 0


def test_tip_is_its_closed_form() -> None:
    splits, text = world()
    head = CacheHead.fit(splits["train"], splits["val"], text, SCALE)
    row = splits["test"][0][5].astype(np.float64)
    votes = np.zeros(CLASSES)
    for key, label in zip(*splits["train"], strict=True):
        votes[label] += np.exp(-head.beta * (1 - key.astype(np.float64) @ row))
    expected = SCALE * (text.astype(np.float64) @ row) + head.alpha * votes
    assert np.allclose(head.scores(splits["test"][0])[5], expected, atol=1e-3)
    assert isinstance(head, CacheHead) and head.alpha > 0


def test_errors_say_what_is_wrong() -> None:
    splits, text = world()
    with pytest.raises(RecipeError, match="'linaer' is unknown.*did you mean 'linear'"):
        fit("linaer", splits["train"], splits["val"], text)
    for name in ("tip", "clip-adapter", "linear-anchored"):
        with pytest.raises(RefusedError, match="needs the classes' text features"):
            fit(name, splits["train"], splits["val"], None)
    with pytest.raises(TaskError, match="val has"):
        fit("linear", splits["train"], (splits["val"][0], splits["val"][1][1:]), text)
    with pytest.raises(RecipeError, match="head kind 'nothing'"):
        restore("nothing", {})
    assert fit("gda", splits["train"], splits["val"], None).val_loss < np.log(CLASSES)


@dataclass(frozen=True, kw_only=True, eq=False)
class MeansHead(Head):
    """A head that somebody adds: the mean of each class."""

    kind: ClassVar[str] = "means"
    shapes: ClassVar[Mapping[str, str]] = {"means": "CE"}

    means: Array

    @classmethod
    def fit(cls, train, val, text, scale, seed):
        features, labels = train
        means = np.stack([features[labels == label].mean(0) for label in range(len(text))])
        return validated(cls(means=SCALE * means), val)

    def scores(self, features):
        return features @ self.means.T


def test_a_new_head_is_a_room_and_a_line_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    room = ModuleType("a_room")
    room.MeansHead = MeansHead  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_room", room)
    monkeypatch.setitem(HEADS, "means", "a_room:MeansHead.fit")
    splits, text = world()
    head = fit("means", splits["train"], splits["val"], text, SCALE)
    features, labels = splits["test"]
    assert accuracy(head.scores(features), labels) > accuracy(features @ text.T, labels)
    assert np.array_equal(restore("means", head.state_dict(), CLASSES).scores(features), head.scores(features))
    with pytest.raises(ArtifactError, match="means is float32"):
        restore("means", head.state_dict(), CLASSES + 1)
    assert "head:means" in [row["name"] for row in search.describe()]
    monkeypatch.setattr(MeansHead, "fit", lambda *_: replace(head, val_loss=-1.0))
    assert fit("auto", splits["train"], splits["val"], text, SCALE).kind == "means"


def test_rooms_are_loaded_when_used_and_torch_by_one() -> None:
    code = """
import sys, numpy as np, engine.heads as heads
print([name for name in sys.modules if name.startswith("engine.heads.")])
rows = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
for name in set(heads.HEADS) - {"clip-adapter", "auto"}:
    heads.fit(name, rows, rows, rows[0][::2])
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]
