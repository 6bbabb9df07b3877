"""CraFT: on a problem whose answers are tables, with what every search promises."""

from __future__ import annotations

import numpy as np
import pytest

from engine.errors import ArtifactError, RecipeError, RefusedError
from engine.heads.score_heads import log_probabilities
from engine.objectives import cross_entropy
from engine.protocols import Feedback, Outputs
from engine.search import make
from engine.search_space import Space

DIM, ROWS, CLASSES = 6, 40, 4
RANDOM = np.random.default_rng(0)
LABELS = np.arange(ROWS) % CLASSES
MAP = RANDOM.normal(size=(DIM, ROWS, CLASSES)) * 0.3 + np.eye(CLASSES)[LABELS] * 0.5
BASE = RANDOM.normal(size=(ROWS, CLASSES))
SMALL = {"popsize": 8, "hidden": 8, "rate": 0.01}


def answered(thetas, failing=()):
    outputs = Outputs(scores=(BASE + np.einsum("pd,drc->prc", thetas, MAP)).astype(np.float32))
    losses = cross_entropy(outputs, LABELS)
    losses[list(failing)] = np.nan
    return Feedback(losses=losses, outputs=outputs, labels=LABELS)


def started(**options):
    return make("craft", {**SMALL, **options}).start(Space(dim=DIM), 200, seed=1)


def rounds(search, budget, batch=5, done=0, failing=()):
    while done < budget:
        thetas = search.ask(min(batch, budget - done))
        search.tell(thetas, answered(thetas, [f for f in failing if f < len(thetas)]))
        done += len(thetas)
        yield thetas


def loss(theta):
    return answered(theta[None]).losses[0]


@pytest.mark.parametrize("steps", [0, 5])
def test_it_begins_at_zero_and_improves(steps):
    search = started(steps=steps)
    asked = list(rounds(search, 200))
    assert len(asked[0]) == 1 and not asked[0].any()
    assert max(len(thetas) for thetas in asked) <= 5 and sum(map(len, asked)) == 200
    assert loss(search.recommend()) < 0.8 * loss(np.zeros(DIM))


def test_the_adapter_learns_from_the_generations_best():
    still, learning = started(steps=0), started(steps=20, weight=0.0)
    for search in (still, learning):
        list(rounds(search, 120))
    x = log_probabilities(answered(learning.recommend()[None]).outputs.scores[0])
    network = learning._adapter
    before = network.loss(network.begin(1), x, LABELS)
    assert network.loss(learning._parameters, x, LABELS) < before
    assert still._parameters.tobytes() == network.begin(1).tobytes()


@pytest.mark.parametrize("cut", [1, 2, 5, 12])
def test_resumes_to_the_same_bits(cut):
    whole, resumed, done = started(), None, 0
    for number, thetas in enumerate(rounds(whole, 100), 1):
        done += len(thetas)
        if number == cut:
            resumed = started()
            resumed.load_state_dict(whole.state_dict())
            others = rounds(resumed, 100, done=done)
        elif resumed is not None:
            assert thetas.tobytes() == next(others).tobytes()
    assert whole.recommend().tobytes() == resumed.recommend().tobytes()
    for value in whole.state_dict().values():
        assert isinstance(value, int | float) or value.dtype != object


def test_failures_are_survived():
    search = started()
    for thetas in rounds(search, 120, failing=(0, 2)):
        assert np.isfinite(thetas).all()
    assert loss(search.recommend()) < loss(np.zeros(DIM))


def test_what_it_cannot_use_is_refused():
    search = started()
    thetas = search.ask(4)
    with pytest.raises(RefusedError, match="outputs"):
        search.tell(thetas, Feedback(losses=np.ones(len(thetas))))
    with pytest.raises(ArtifactError):
        make("craft", SMALL).start(Space(dim=DIM + 1), 100, seed=1).load_state_dict(search.state_dict())
    for wrong in ({"hidden": 0}, {"steps": -1}, {"popsize": 2}, {"weight": -1.0}):
        with pytest.raises(RecipeError):
            make("craft", wrong)
    assert make("craft").needs.table and "labels" not in make("craft").needs.gives
