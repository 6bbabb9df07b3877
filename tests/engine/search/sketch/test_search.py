"""The table search on the toy box: faster than scalar rules, resumed to the same bits, robust to failed candidates."""

import numpy as np
import pytest

from engine import search
from engine.boxes.toy import toy_task
from engine.errors import RecipeError, RefusedError
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.serial import Serial
from engine.protocols import Feedback
from engine.search_space import Space
from engine.session import RunSettings, Session
from engine.task import Task


def evaluator(box="toy:"):
    task = toy_task()
    splits = {"train": task.train, "val": task.val, "test": task.test}
    return Serial(
        ProblemSpec(box=box, classes=task.classes, template=task.template, splits=splits, prompt={"name": "text"})
    )


def loss(method, options, budget, seed=1, box="toy:", **settings):
    serial, made = evaluator(box), search.make(method, options)
    spec = serial.spec
    task = Task(uri=box, classes=spec.classes, template=spec.template, **spec.splits)
    session = Session(serial, task, budget=budget, settings=RunSettings(seed=seed, **settings))
    *_, last = made.run(session)
    return last.best_loss


@pytest.mark.parametrize("box", ["toy:", "toy:?gives=scores"])
def test_the_table_is_worth_many_evaluations(box):
    ours = [loss("sketch", {}, 100, seed, box) for seed in (1, 2)]
    scalar = [loss("momentum", {}, 300, seed, box) for seed in (1, 2)]
    assert np.mean(ours) < np.mean(scalar)


def test_minibatches_are_no_reason_to_fail():
    template = evaluator().evaluate(np.zeros((1, evaluator().describe()[1].dim), np.float32)).losses[0]
    assert loss("sketch", {}, 60, rows=24) < 0.8 * template


def table_of(thetas, seed=0, fail=None):
    """Scores of a smooth map from theta, 12 rows and 3 classes; a failed candidate answers NaN."""
    random = np.random.default_rng(seed)
    first, second = random.standard_normal((thetas.shape[1], 8)), random.standard_normal((8, 36))
    scores = (np.tanh(thetas.astype(np.float64) @ first * 0.5) @ second).reshape(-1, 12, 3).astype(np.float32)
    if fail is not None:
        scores[fail] = np.nan
    return scores


LABELS = np.arange(12) % 3


def told(run, rounds, fail=()):
    from engine.objectives import cross_entropy
    from engine.protocols import Outputs

    asked = []
    for number in range(rounds):
        thetas = run.ask(12)
        assert 1 <= len(thetas) <= 12 and thetas.dtype == np.float32 and np.isfinite(thetas).all()
        outputs = Outputs(scores=table_of(thetas, fail=-1 if number in fail else None))
        run.tell(thetas, Feedback(losses=cross_entropy(outputs, LABELS), outputs=outputs, labels=LABELS))
        asked.append(thetas)
    return asked


def test_resumes_to_the_same_bits():
    whole = search.make("sketch", {"k": 4}).start(Space(dim=6), 200, 1)
    asked = told(whole, 12)
    for stop in (1, 4, 7):
        begun = search.make("sketch", {"k": 4}).start(Space(dim=6), 200, 1)
        told(begun, stop)
        resumed = search.make("sketch", {"k": 4}).start(Space(dim=6), 200, 1)
        resumed.load_state_dict(begun.state_dict())
        rest = told(resumed, 12 - stop)
        assert [t.tobytes() for t in rest] == [t.tobytes() for t in asked[stop:]]


def test_failed_candidates_are_left_out():
    run = search.make("sketch", {"k": 4}).start(Space(dim=6), 200, 1)
    told(run, 14, fail=(1, 2, 5, 8))
    assert np.isfinite(run.recommend()).all() and run.recommend().any()


def test_theta_zero_comes_first_and_the_table_is_needed():
    run = search.make("sketch").start(Space(dim=6), 200, 1)
    assert not run.ask(20)[0].any()
    with pytest.raises(RefusedError, match="whole table"):
        run.tell(run.ask(20), Feedback(losses=np.zeros(17)))
    with pytest.raises(RecipeError, match="spread"):
        search.make("sketch", {"spread": 1.0})


def test_golden_value():
    run = search.make("sketch", {"k": 4}).start(Space(dim=6), 200, 1)
    told(run, 8)
    np.testing.assert_allclose(np.linalg.norm(run.recommend()), 5.09746, rtol=1e-4)
