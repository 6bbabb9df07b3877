import numpy as np
import pytest

from engine.errors import BudgetError
from engine.protocols import BoxSpec, Evaluator, Feedback, Reply, Work
from engine.random_streams import Purpose, rng
from engine.search_space import Space
from engine.session import RunSettings, Session
from engine.task import Split, Task
from engine.tuning_loop import steps

N, VAL, DIM = 20, 8, 5
GOAL = np.linspace(0.5, 1.5, DIM)


class Bowl(Evaluator):
    """An evaluator without images: the loss is the distance to GOAL, validation pulls a little elsewhere."""

    workers = 0

    def __init__(self, free_looks=False):
        self.asked, self.free_looks = [], free_looks

    def describe(self):
        spec = BoxSpec(
            uri="bowl:", gives=frozenset({"features" if self.free_looks else "scores"}), accepts=frozenset({"context"}),
            classes=("a", "b"), template="{}", image_size=1,
        )  # fmt: skip
        return spec, Space(dim=DIM, moves=frozenset({"text"}))

    def read(self, theta, split, *, whole):
        return self.evaluate(theta[None], split=split)

    def evaluate(self, thetas, rows=None, *, split="train", table=False):
        num = (N if split == "train" else VAL) if rows is None else len(rows)
        goal = GOAL if split == "train" else GOAL * 0.8
        self.asked.append((split, len(thetas), None if rows is None else rows.copy()))
        losses = ((thetas - goal) ** 2).sum(1).astype(np.float64)
        return Reply(losses=losses, correct=np.full(len(thetas), num // 2), pairs=len(thetas) * num, work=Work())


class Walk:
    """A search that draws around the best it has seen; the least that fits the protocol."""

    def __init__(self, size=4):
        self.size, self.step = size, 0
        self.best, self.loss = np.zeros(DIM, np.float32), np.inf

    def ask(self, limit):
        draws = rng(1, self.step, Purpose.PROBES).standard_normal((min(limit, self.size), DIM))
        if self.step == 0:
            draws[0] = 0
        return (self.best + 0.3 * draws).astype(np.float32)

    def tell(self, thetas, feedback: Feedback):
        self.step += 1
        i = int(np.nanargmin(feedback.losses))
        if feedback.losses[i] < self.loss:
            self.best, self.loss = thetas[i].copy(), feedback.losses[i]

    def recommend(self):
        return self.best

    def state_dict(self):
        return {"step": self.step, "best": self.best, "loss": float(self.loss)}

    def load_state_dict(self, state):
        self.step, self.best, self.loss = state["step"], state["best"], state["loss"]


def session(evaluator=None, budget=50.0, val=VAL, **settings):
    sizes = {"train": N, "val": val, "test": 0}
    splits = {name: Split(source=None, labels=np.zeros(size)) for name, size in sizes.items()}
    task = Task(uri="bowl", classes=("a", "b"), template="{}", **splits)
    return Session(evaluator or Bowl(), task, budget=budget, settings=RunSettings(**settings))


def run(search=None, evaluator=None, budget=50.0, **settings):
    asked = session(evaluator, budget, **settings)
    return list(steps(search or Walk(), asked)), asked.ledger, asked.evaluator


def facts(history):
    return [(s.step, s.pairs, s.loss, s.best_loss, s.look and s.look.val_loss, s.best.val_loss) for s in history]


def test_spends_the_budget_and_no_more_and_improves():
    history, ledger, _ = run()
    assert 45 <= ledger.evaluations <= 50
    assert history[-1].best_loss < 0.5 * history[0].best_loss
    assert history[-1].last and not history[0].last


def test_theta_zero_comes_first_and_is_looked_at_first():
    history, _, evaluator = run()
    assert evaluator.asked[0][:2] == ("train", 4) and evaluator.asked[1][:2] == ("val", 1)
    assert not history[0].look.theta.any()


def test_a_search_that_does_not_begin_at_zero_pays_for_it():
    class Elsewhere(Walk):
        def ask(self, limit):
            return super().ask(limit) + np.float32(0.1)

    _, ledger, evaluator = run(Elsewhere(), budget=12)
    assert evaluator.asked[0][:2] == ("train", 1)
    assert ledger.evaluations <= 12


def test_about_twenty_looks_selected_by_validation_loss():
    history, _, _ = run(budget=400)
    looks = [s.look for s in history if s.look]
    assert 18 <= len(looks) <= 23
    assert history[-1].best.val_loss == min(look.val_loss for look in looks)


def test_looks_are_charged_unless_they_follow_from_answers():
    _, paid, evaluator = run()
    _, free, _ = run(evaluator=Bowl(free_looks=True))
    looks = sum(1 for split, *_ in evaluator.asked if split == "val")
    trained = sum(count for split, count, _ in evaluator.asked if split == "train")
    assert paid.pairs == trained * N + looks * VAL
    assert free.pairs % N == 0


def test_a_prompt_that_was_looked_at_is_not_paid_for_again():
    class Still(Walk):
        def recommend(self):
            return np.zeros(DIM, np.float32)

    history, ledger, evaluator = run(Still())
    assert [split for split, *_ in evaluator.asked].count("val") == 1 < sum(1 for step in history if step.look)
    assert ledger.pairs == VAL + N * sum(count for split, count, _ in evaluator.asked if split == "train")


def test_without_validation_the_training_loss_selects():
    history = list(steps(Walk(), session(budget=30, val=0)))
    assert history[-1].best.val_loss == pytest.approx(history[-1].best_loss)


def test_minibatches_are_a_function_of_seed_and_step():
    _, ledger, evaluator = run(rows=5, seed=3)
    again = run(rows=5, seed=3)[2]
    other = run(rows=5, seed=4)[2]

    def chosen(evaluator):
        return [rows.tolist() for split, _, rows in evaluator.asked if rows is not None]

    assert chosen(evaluator) == chosen(again) != chosen(other)
    assert all(len(set(rows)) == 5 for rows in chosen(evaluator))
    assert ledger.evaluations <= 50


@pytest.mark.parametrize("stop", [1, 2, 7, 11])
def test_resume_gives_the_same_history(stop):
    whole, ledger, _ = run()
    first = []
    for step in steps(Walk(), session()):
        first.append(step)
        if len(first) == stop:
            state = step.state()
            break
    other = session()
    rest = list(steps(Walk(), other, resume=state))
    assert facts(first + rest) == facts(whole)
    assert other.ledger == ledger


def test_failed_candidates_do_not_end_a_run():
    class Failing(Bowl):
        def evaluate(self, thetas, rows=None, *, split="train", table=False):
            reply = super().evaluate(thetas, rows, split=split, table=table)
            if split == "train":
                reply.losses[1:] = np.nan
            return reply

    history, _, _ = run(evaluator=Failing())
    assert np.isfinite(history[-1].best_loss)


def test_a_budget_below_the_template_is_refused_before_anything_is_sent():
    evaluator = Bowl()
    with pytest.raises(BudgetError, match="allow more"):
        list(steps(Walk(), session(evaluator, budget=1)))
    assert not evaluator.asked
