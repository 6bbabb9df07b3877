"""Objectives: values against torch, what boxes can be asked for, candidates that fail."""

import numpy as np
import pytest

from engine.errors import RecipeError, RefusedError
from engine.objectives import OBJECTIVES, Weighted, cross_entropy, make_objective, top_k_cross_entropy, zero_one
from engine.protocols import Outputs

P, B, C, E = 3, 7, 5, 4


def features(seed: int = 0, text: int = P, image: int = 1) -> Outputs:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(text, C, E)), rng.normal(size=(image, B, E))]
    unit = [(part / np.linalg.norm(part, axis=-1, keepdims=True)).astype(np.float32) for part in parts]
    return Outputs(text=unit[0], image=unit[1], scale=20.0)


LABELS = np.arange(B) % C


def test_cross_entropy_is_torchs():
    import torch

    outputs = features()
    logits = torch.from_numpy(outputs.logits()).double()
    theirs = [torch.nn.functional.cross_entropy(table, torch.from_numpy(LABELS)).item() for table in logits]
    np.testing.assert_allclose(cross_entropy(outputs, LABELS), theirs, rtol=1e-12)


@pytest.mark.parametrize(("text", "image"), [(P, 1), (1, P), (P, P), (1, 1)])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_features_and_their_scores_give_the_same_bits(objective, text, image):
    outputs = features(text=text, image=image)
    losses = objective(outputs, LABELS)
    assert losses.shape == (max(text, image),) and losses.dtype == np.float64
    np.testing.assert_array_equal(losses, objective(Outputs(scores=outputs.logits()), LABELS))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_constant_per_row_changes_nothing(objective):
    scores = features().logits().astype(np.float32)
    shift = np.float32(2.0) ** np.arange(B, dtype=np.float32)[None, :, None]
    np.testing.assert_allclose(
        objective(Outputs(scores=scores + shift), LABELS), objective(Outputs(scores=scores), LABELS), rtol=1e-4
    )


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_candidate_that_is_not_finite_fails_alone(objective):
    good, bad = features(), features()
    bad.text[1, 2, 0] = np.nan
    losses = objective(bad, LABELS)
    assert np.isnan(losses[1])
    np.testing.assert_array_equal(losses[[0, 2]], objective(good, LABELS)[[0, 2]])


def test_large_logits_do_not_overflow():
    scores = np.array([[[1e30, -1e30], [3e38, 3e38]]], np.float32)
    np.testing.assert_allclose(cross_entropy(Outputs(scores=scores), np.array([0, 1])), [np.log(2) / 2])


def test_an_infinite_loss_counts_as_failed():
    scores = np.array([[[-np.inf, 0.0]]], np.float32)
    assert np.isnan(cross_entropy(Outputs(scores=scores), np.array([0]))).all()
    assert cross_entropy(Outputs(scores=scores), np.array([1])).tolist() == [0.0]


def test_zero_one_is_one_minus_accuracy_for_every_kind_of_answer():
    outputs = features()
    labels = outputs.predictions()
    wrong = (labels != LABELS).mean(-1)
    top = np.argsort(-outputs.logits(), -1)[..., :2]
    log_probabilities = np.take_along_axis(outputs.logits(), top, -1)
    for answer in (outputs, Outputs(labels=labels), Outputs(topk=(top, log_probabilities))):
        np.testing.assert_array_equal(zero_one(answer, LABELS), wrong)


def test_cross_entropy_needs_scores():
    with pytest.raises(RefusedError, match="zero-one"):
        cross_entropy(Outputs(labels=np.zeros((P, B), np.int64)), LABELS)


def test_weighted_is_the_weighted_sum():
    outputs = features()
    expected = 0.5 * cross_entropy(outputs, LABELS) + 2.0 * zero_one(outputs, LABELS)
    np.testing.assert_array_equal(Weighted(((0.5, cross_entropy), (2.0, zero_one)))(outputs, LABELS), expected)
    with pytest.raises(ValueError, match="at least one"):
        Weighted(())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_labels_of_another_length_are_refused(objective):
    with pytest.raises(ValueError, match=r"\(8,\)"):
        objective(features(), np.zeros(B + 1, np.int64))


def test_objectives_by_name():
    assert make_objective("cross-entropy") is cross_entropy
    assert make_objective("engine.objectives:zero_one") is zero_one
    with pytest.raises(RecipeError, match="did you mean 'cross-entropy'"):
        make_objective("cross_entropy")
    with pytest.raises(RecipeError, match="nowhere"):
        make_objective("nowhere:loss")


def test_the_top_k_alone_are_close_to_the_whole():
    random = np.random.default_rng(0)
    labels = random.integers(0, 8, 200)
    labels[0] = 7
    scores = (random.normal(size=(3, 200, 8)) + 2 * np.eye(8)[labels] * np.arange(3)[:, None, None]).astype(np.float32)
    told = scores.astype(float) - np.log(np.exp(scores.astype(float)).sum(-1, keepdims=True))
    best = np.argsort(-told, -1)
    whole = cross_entropy(Outputs(scores=scores), labels)
    for k, within in ((7, 1e-5), (5, 0.3)):
        top = Outputs(topk=(best[..., :k], np.take_along_axis(told, best, -1)[..., :k].astype(np.float32)))
        losses = top_k_cross_entropy(top, labels)
        np.testing.assert_allclose(losses, whole, atol=within)
        assert (np.diff(losses) < 0).all()
    np.testing.assert_array_equal(top_k_cross_entropy(Outputs(scores=scores), labels), whole)
    broken = Outputs(topk=(best[..., :5], np.full((3, 200, 5), np.nan, np.float32)))
    assert np.isnan(top_k_cross_entropy(broken, labels)).all()
