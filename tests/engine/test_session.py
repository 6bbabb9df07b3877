"""A session: what is asked is booked, what is held is not asked again."""

import numpy as np
import pytest
from counted import answers, counted_task

from engine.errors import BudgetError, RefusedError
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.serial import Serial
from engine.session import Session

N, VAL, TEST = 80, 20, 500


@pytest.fixture
def session_of(tmp_path):
    def make(options="", budget=10.0, **settings):
        task = counted_task()
        problem = ProblemSpec(
            box=f"counted:{tmp_path}{options}",
            classes=task.classes,
            template=task.template,
            splits=task.splits,
            prompt={"name": "text", "tokens": settings.pop("tokens", None)},
        )
        return Session(Serial(problem), task, budget=budget, **settings)

    return make


def some(session, seed=0):
    return np.random.default_rng(seed).standard_normal(session.space.dim).astype(np.float32)


@pytest.mark.parametrize("options", ["", "?gives=scores", "?gives=labels"])
def test_an_answer_is_asked_once_and_booked(session_of, tmp_path, options):
    session = session_of(options)
    theta = some(session)
    first = session.read(theta, "val")
    assert session.read(theta.copy(), "val") is first
    assert session.ledger.pairs == VAL and answers(tmp_path) == [("val", VAL)]
    session.read(theta, "test")
    session.read(theta, "test")
    assert session.ledger.test_pairs == TEST and session.ledger.pairs == VAL and len(answers(tmp_path)) == 2


def test_what_follows_from_text_features_is_not_charged(session_of):
    for options, due in (("", 0), ("?gives=scores", VAL)):
        session = session_of(options)
        session.read(some(session), "val", follows=True)
        assert session.ledger.pairs == due and session.ledger.followed == VAL - due


def test_features_of_images_and_texts_that_came_back_are_put_together(session_of, tmp_path):
    """Where only text moves: no answer is asked again for what a head wants, and it is what the box would say."""
    session = session_of(keep=True)
    theta = some(session)
    session.evaluate(np.stack([np.zeros_like(theta), theta]))
    session.read(theta, "val", follows=True)
    session.zero_shot()
    asked = answers(tmp_path)
    told = {split: session.outputs(theta, split) for split in ("train", "val", "test")}
    assert answers(tmp_path) == asked and session.ledger.test_pairs == TEST and session.ledger.pairs == 2 * N
    for split, outputs in told.items():
        own = session.evaluator.read(theta, split, whole=True).outputs
        assert outputs.logits().tobytes() == own.logits().tobytes()


def test_scores_are_read_and_charged(session_of, tmp_path):
    session = session_of("?gives=scores", keep=True)
    theta = some(session)
    session.evaluate(theta[None])
    loss = session.cross_entropy(theta)
    assert session.cross_entropy(theta) == loss and session.holds(theta, "train")
    assert session.ledger.pairs == 2 * N == sum(pairs for _, pairs in answers(tmp_path))


def test_the_template_is_read_once_where_theta_zero_is_the_same(session_of, tmp_path):
    for tokens, reads in ((None, 1), (6, 2)):
        session = session_of(tokens=tokens)
        before = len(answers(tmp_path))
        session.zero_shot()
        session.read(np.zeros(session.space.dim, np.float32), "test")
        assert len(answers(tmp_path)) - before == reads and session.ledger.test_pairs == reads * TEST


def test_nothing_is_sent_that_the_budget_does_not_cover(session_of, tmp_path):
    session = session_of(budget=1.2)
    session.evaluate(some(session)[None])
    asked = answers(tmp_path)
    with pytest.raises(BudgetError, match="allow more"):
        session.read(some(session), "val")
    with pytest.raises(BudgetError, match="allow more"):
        session.evaluate(np.stack([some(session)] * 2), np.arange(10))
    assert answers(tmp_path) == asked and session.ledger.pairs == N


def test_an_artifact_and_class_features_ask_nothing_that_is_charged(session_of, tmp_path):
    session = session_of()
    theta = some(session)
    session.evaluate(theta[None])
    session.read(theta, "test")
    asked = answers(tmp_path)
    kept = session.prompt(theta)
    assert answers(tmp_path) == asked and set(kept) == {"context", "text_features"}
    np.testing.assert_array_equal(session.class_features(theta[None])[0], kept["text_features"])
    assert session.ledger.pairs == N and session.ledger.followed == 1
    with pytest.raises(RefusedError, match="text features"):
        session_of("?gives=scores").class_features(theta[None])


@pytest.mark.parametrize("keep", [False, True])
def test_what_an_earlier_process_booked_is_not_booked_again(session_of, keep):
    first, second = session_of("?gives=scores", keep=keep), session_of("?gives=scores", keep=keep)
    theta = some(first)
    told = first.read(theta, "val")
    second.load_state_dict(first.state_dict())
    assert second.holds(theta, "val")
    again = second.read(theta, "val")
    assert (again.losses, again.correct) == (told.losses, told.correct)
    assert second.ledger.pairs == 0 and second.ledger.retries == (1 if keep else 0)
    third = session_of("?gives=scores", keep=keep)
    third.load_state_dict(second.state_dict())
    assert third.holds(theta, "val"), "an interruption after another"
