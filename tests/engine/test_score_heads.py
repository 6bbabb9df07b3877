"""The adapter on scores: its gradient against torch's, where it starts, what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.heads import fit, inputs, on_scores, restore
from engine.heads.score_heads import Adapter, ScoreAdapterHead, log_probabilities
from engine.protocols import Outputs

C = 5
RANDOM = np.random.default_rng(0)


def scored(n, seed):
    """Scores that are right about a quantity that is confused in a fixed way."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % C
    confusion = np.roll(np.eye(C), 1, axis=0) * 2.0
    return ((np.eye(C)[labels] + confusion[labels]) + 0.5 * random.normal(size=(n, C))).astype(np.float32), labels


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_step_is_adams_on_the_true_gradient(weight):
    network = Adapter(classes=C, hidden=7, rate=0.01, weight=weight)
    parameters = network.begin(1) + 0.1 * RANDOM.normal(size=network.begin(1).shape)
    scores, labels = scored(12, 1)
    x = log_probabilities(scores)
    ours, _ = network.step(parameters, network.memory(parameters), x, labels)

    theirs = torch.tensor(parameters, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.01)
    into, bias, out, offset = torch.split(theirs, [C * 7, 7, 7 * C, C])
    tx = torch.tensor(x)
    r = tx + (tx @ into.reshape(C, 7) + bias).relu() @ out.reshape(7, C) + offset
    log_q = torch.log_softmax(r, -1)
    kl = (log_q.exp() * (log_q - tx)).sum(-1).mean()
    value = torch.nn.functional.nll_loss(log_q, torch.tensor(labels)) + weight * kl
    value.backward()
    adam.step()
    assert float(value.detach()) == pytest.approx(network.loss(parameters, x, labels))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-9)


def test_it_starts_at_the_boxs_own_answer():
    network = Adapter(classes=C)
    x = log_probabilities(scored(9, 2)[0])
    np.testing.assert_array_equal(network.refine(network.begin(1), x), x)
    assert network.begin(1).tobytes() != network.begin(2).tobytes()


@pytest.mark.parametrize("name", ["score-linear", "score-adapter"])
def test_heads_on_scores_undo_a_confusion(name):
    train, val, (scores, labels) = scored(60, 3), scored(20, 4), scored(500, 5)
    assert on_scores(name) and not on_scores("linear")
    head = fit(name, train, val)
    read = inputs(name, Outputs(scores=scores[None] + RANDOM.normal(size=(1, 500, 1)).astype(np.float32)))
    told = head.scores(read)
    assert told.dtype == np.float32 and told.shape == (500, C)
    assert (told.argmax(-1) == labels).mean() > (scores.argmax(-1) == labels).mean() + 0.3
    again = restore(head.kind, head.state_dict())
    np.testing.assert_array_equal(again.scores(read), told)
    # A constant a row does not matter, up to rounding.
    np.testing.assert_allclose(told, head.scores(inputs(name, Outputs(scores=scores[None]))), atol=1e-3)


def test_nothing_worse_than_the_box_is_chosen():
    scores, _ = scored(40, 6)
    noise = np.random.default_rng(7).integers(0, C, 40)
    val = scored(20, 8)
    head = ScoreAdapterHead.fit((scores, noise), val, seed=1)
    own = -log_probabilities(val[0])[np.arange(20), val[1]].mean()
    assert head.val_loss <= own + 1e-6


def test_inputs_of_what_a_box_does_not_give():
    labels = Outputs(labels=np.zeros((1, 3), np.int64))
    assert inputs("linear", labels) is None and inputs("score-linear", labels) is None
    assert inputs("linear", Outputs(scores=np.zeros((1, 3, 2), np.float32))) is None
