"""Runs of methods that are more than a prompt search: heads on scores, mixtures of templates; and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from counted import Talking

from engine.artifact import Artifact
from engine.boxes import toy
from engine.errors import BudgetError, RecipeError, RefusedError
from engine.evaluators.serial import Serial
from engine.protocols import Feedback
from engine.search import METHODS, make
from tuning import run
from tuning.evaluate import evaluate
from tuning.recipe import make_recipe
from tuning.resolve import prompt_of
from tuning.run import Tuning, problem_of


def talking(request):
    return Talking(uri=request.uri, classes=request.classes, template=request.template, gives=request.gives)


@pytest.fixture
def world(monkeypatch):
    """Toy task and boxes under the names `toy:` and `talking:`."""
    from engine import boxes

    monkeypatch.setitem(boxes.SCHEMES, "talking", f"{__name__}:talking")
    monkeypatch.setattr(boxes, "WITHOUT_TORCH", frozenset({"toy", "talking"}))
    task = toy.toy_task(seed=1)
    monkeypatch.setattr(run, "load_task", lambda uri, **settings: task)
    return task


def tuned(folder, method, box="toy:", budget=60, **settings):
    recipe = make_recipe({"task": "toy:", "box": box, "method": method, "budget": budget, **settings})
    tuning = Tuning(recipe, folder)
    for _ in tuning:
        pass
    return tuning.result, evaluate(Artifact.load(folder))


CASES = [
    ("head:score-linear", "toy:?gives=scores", "score-linear"),
    ("head:score-adapter", "toy:?gives=scores", "score-adapter"),
    ("craft", "toy:?gives=scores", "score-adapter"),
    ("zero-shot:ensemble", "talking:", "templates"),
    ("words", "talking:", "templates"),
    ("words", "talking:?gives=scores", None),
    ("words", "talking:?gives=labels", None),
    ("bpt-vlm", "toy:?gives=labels", None),
]


@pytest.mark.parametrize(("method", "box", "head"), CASES)
def test_what_a_run_leaves_reads_back_to_the_same_accuracy(tmp_path, world, method, box, head):
    result, read = tuned(tmp_path, method, box, budget=150)
    assert result["head"] == head
    assert result["evaluations"] <= 150
    assert read["accuracy"] == result["accuracy"] > result["zero_shot_accuracy"]
    assert read["zero_shot_accuracy"] == result["zero_shot_accuracy"]


PEERS = ["cbbt", "spsa-gc", "bar", "zip", "sharpzo", "bpt-vlm", "craft"]


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_improves_on_zero_shot_with_its_defaults(world, name):
    method = make(name)
    recipe = make_recipe({"task": "toy:", "box": "toy:", "method": name})
    serial = Serial(problem_of(recipe, world, method), chunk=8)
    _, space = serial.describe()
    search = method.start(space, 500, seed=1)
    done = 0
    while done < 500:
        thetas = search.ask(min(50, 500 - done))
        reply = serial.evaluate(thetas, table=method.needs.table)
        told = world.train.labels if method.needs.table else None
        search.tell(thetas, Feedback(losses=reply.losses, outputs=reply.outputs, labels=told))
        done += len(thetas)
    ends = np.stack([np.zeros(space.dim, np.float32), search.recommend()])
    zero, tuned_loss = serial.evaluate(ends).losses
    assert tuned_loss < 0.85 * zero


def test_a_head_on_scores_joins_a_prompt_method(tmp_path, world):
    alone, _ = tuned(tmp_path / "alone", "momentum", "toy:?gives=scores")
    joined, read = tuned(tmp_path / "joined", "momentum", "toy:?gives=scores", head="score-linear")
    assert joined["head"] == "score-linear" and read["accuracy"] == joined["accuracy"]
    assert joined["train_loss"] < alone["train_loss"]
    assert joined["evaluations"] == alone["evaluations"] + 1, "the selected prompt's scores are read once more"
    searched, _ = tuned(tmp_path / "features", "momentum", "toy:")
    free, _ = tuned(tmp_path / "free", "momentum", "toy:", head="gda")
    assert free["evaluations"] == searched["evaluations"], "features have come back already"


def test_a_head_whose_last_read_the_budget_may_not_cover_is_refused_before_the_first_query(
    tmp_path, world, monkeypatch
):
    monkeypatch.setattr(Serial, "evaluate", lambda *args, **settings: pytest.fail("a query was sent"))
    with pytest.raises(BudgetError, match="give at least 2.5"):
        tuned(tmp_path, "momentum", "toy:?gives=scores", budget=2, head="score-linear")


def test_words_go_on_from_an_earlier_run_with_their_mixture(tmp_path, world):
    """The template that was kept is the first parent, and one of those that are mixed."""
    tuned(tmp_path / "first", "words", "talking:", budget=100)
    kept = Artifact.load(tmp_path / "first")
    result, read = tuned(tmp_path / "second", "words", "talking:", budget=10, start=str(tmp_path / "first"))
    assert result["head"] == "templates" and read["accuracy"] == result["accuracy"] > result["zero_shot_accuracy"]
    again = Artifact.load(tmp_path / "second")
    assert again.arrays["head.templates.weights"][1] > 0, "the kept template is the first after the task's own"
    history = [json.loads(line) for line in (tmp_path / "second" / "history.jsonl").read_text().splitlines()]
    own = Serial(problem_of(make_recipe({"task": "toy:", "box": "talking:", "method": "words"}), world, make("words")))
    assert min(line["best_loss"] for line in history) <= own.evaluate(kept.arrays["theta"][None]).losses[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_cannot_live_on_labels_is_refused_before_the_first_query(tmp_path, world, monkeypatch, name):
    if "labels" in make(name).needs.gives:
        return
    monkeypatch.setattr(Serial, "evaluate", lambda *args, **settings: pytest.fail("a query was sent"))
    with pytest.raises(RefusedError, match="labels"):
        tuned(tmp_path, name, "toy:?gives=labels")


@pytest.mark.parametrize("method", ["zero-shot:ensemble", "head:score-linear", "head:linear"])
def test_heads_are_refused_too(tmp_path, world, monkeypatch, method):
    box = "talking:?gives=labels" if "ensemble" in method else "toy:?gives=labels"
    monkeypatch.setattr(Serial, "evaluate", lambda *args, **settings: pytest.fail("a query was sent"))
    with pytest.raises(RefusedError, match="labels"):
        tuned(tmp_path, method, box)


def test_a_method_brings_its_prompt_tokens_and_subspace_unless_told_otherwise():
    def resolved(method, **prompt):
        recipe = make_recipe({"method": method, "prompt": prompt})
        found = prompt_of(recipe, make(method))
        extras = (found.tokens, "per class" if found.per_class else None)
        return (found.name, found.subspace, *filter(None, extras))

    assert resolved("sketch") == ("text", "full", 8, "per class")
    assert prompt_of(make_recipe({"method": "sketch"}), make("sketch")).per_class == 200
    assert resolved("sketch", tokens=3) == ("text", "full", 3, "per class")
    assert resolved("sketch", per_class=False) == ("text", "full", 8)
    assert resolved("sketch", name="text+pixels") == ("text+pixels", "full", 8)
    assert resolved("momentum") == ("text", "full")
    assert resolved("momentum", per_class=True) == ("text", "full", "per class")
    assert resolved("sketch", name="pixels") == ("pixels", "full")
    assert resolved("zip") == ("text", "low-rank:5")
    assert resolved("zip", subspace="full") == ("text", "full")
    assert resolved("zip", name="pixels") == ("pixels", "full")
    assert resolved("momentum") == ("text", "full")
    assert resolved("words") == resolved("zero-shot:ensemble") == ("words", "full")
    with pytest.raises(RecipeError, match="words"):
        resolved("words", name="pixels")


def test_the_pool_leaves_out_what_the_box_does_not_know(world, monkeypatch):
    recipe = make_recipe({"task": "toy:", "box": "talking:", "method": "words"})
    serial = Serial(problem_of(recipe, world, make("words")), chunk=2)
    every = serial.problem.space.known
    assert len(every) > 80, "a box that does not say is asked for all"

    monkeypatch.setattr(Talking, "knows", lambda self, template: "photo" in template)
    serial = Serial(problem_of(recipe, world, make("words")), chunk=2)
    some = serial.problem.space.known
    sentences = serial.problem.prompt.decode(some).words
    assert sentences[0] == world.template and 1 < len(some) < len(every)
    assert all("photo" in sentence for sentence in sentences[1:])
