"""Whoever asks, pays: a run's account is all that its box answered, for any method and number of workers."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from counted import answers, counted_task

from engine import search
from engine.boxes.toy import ToyBox
from tuning import run
from tuning.compare.opened import opened
from tuning.data.load_task import load_pool
from tuning.recipe import make_recipe
from tuning.run import Tuning

TIMES = {"box", "seconds", "workers", "retries", "duplicates", "bytes", "fingerprint"}
N, VAL, TEST = 80, 20, 500
FEATURES, SCORES, LABELS, WORDS = "", "?gives=scores", "?gives=labels", "?accepts=words"
CASES = [
    ("momentum", FEATURES, None),
    ("momentum", FEATURES, "gda"),
    ("momentum", SCORES, None),
    ("momentum", SCORES, "score-linear"),
    ("sketch", FEATURES, None),
    ("zero-shot", FEATURES, None),
    ("zero-shot", LABELS, None),
    ("head:linear", FEATURES, None),
    ("head:score-linear", SCORES, None),
    ("zero-shot:ensemble", WORDS, None),
    ("words", WORDS, None),
    ("words", WORDS + "&gives=scores", None),
]


@pytest.fixture(autouse=True)
def task(monkeypatch):
    monkeypatch.setattr(run, "load_task", lambda uri, **settings: counted_task())


def tuning_of(folder, method, options, head, budget=12, resume=False, **settings):
    (folder / "box").mkdir(parents=True, exist_ok=True)
    box = f"counted:{folder / 'box'}{options}"
    settings = {"method": method, "head": head, "budget": budget, "checkpoint_s": 1000, **settings}
    return Tuning(make_recipe({"task": "toy:", "box": box, **settings}), folder / "run", resume=resume)


def tuned(folder, *case, **settings):
    tuning = tuning_of(folder, *case, **settings)
    for _ in tuning:
        pass
    return tuning


def lasting(result):
    return {name: value for name, value in result.items() if name not in TIMES}


def check(tuning, folder, workers=0):
    asked, ledger = answers(folder / "box"), tuning.session.ledger
    canaries = [pairs for split, pairs in asked if split == "canary"]
    assert set(canaries) == {8} and len(canaries) <= max(1, workers), "once a process, and of no image of the task"
    sums = {split: sum(pairs for name, pairs in asked if name == split) for split in ("train", "val", "test")}
    assert sums["test"] == ledger.test_pairs == tuning.result["test_pairs"]
    assert sums["train"] + sums["val"] == ledger.pairs + ledger.followed
    assert ledger.pairs == tuning.result["pairs"] <= ledger.budget * N
    return sums


@pytest.mark.parametrize(("method", "options", "head"), CASES)
def test_every_answer_is_on_the_account(tmp_path, method, options, head):
    tuning = tuned(tmp_path, method, options, head)
    sums = check(tuning, tmp_path)
    if not search.searches(method):
        once = 12 if method == "zero-shot:ensemble" else 1
        assert sums["val"] == VAL and sums["test"] == TEST and tuning.session.ledger.pairs <= once * N + VAL
        assert tuning.session.ledger.followed == (sums["train"] - tuning.session.ledger.pairs + VAL)
    if head == "gda" or method == "words" and "scores" not in options:
        assert sums["test"] == TEST, "where only text moves, the test images' features come back once"
    elif search.searches(method):
        assert sums["test"] == 2 * TEST


def test_minibatches_pay_for_the_training_answers_of_their_head(tmp_path):
    tuning = tuned(tmp_path, "momentum", FEATURES, "gda", rows=16)
    check(tuning, tmp_path)
    assert ("train", N) in answers(tmp_path / "box")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("method", "options", "head"), [CASES[0], CASES[1], CASES[3], CASES[7], CASES[9], CASES[10], CASES[5]]
)
def test_workers_keep_the_same_account(ray_local, tmp_path, method, options, head):
    alone = tuned(tmp_path / "alone", method, options, head)
    pool = tuned(tmp_path / "pool", method, options, head, workers=2)
    assert check(pool, tmp_path / "pool", 2) == check(alone, tmp_path / "alone")
    assert lasting(pool.result) == lasting(alone.result)
    assert pool.session.ledger.followed == alone.session.ledger.followed
    assert pool.result["fingerprint"]["canary"] == alone.result["fingerprint"]["canary"]


@pytest.mark.parametrize(("method", "options", "head"), [CASES[1], CASES[3], CASES[10], CASES[11]])
@pytest.mark.parametrize("stop", ["in the middle", "before the final reads"])
def test_a_resumed_run_has_the_account_of_one_that_was_not_interrupted(tmp_path, method, options, head, stop):
    whole = tuned(tmp_path / "whole", method, options, head, budget=60)
    first = tuning_of(tmp_path / "parts", method, options, head, budget=60)
    with closing(iter(first)) as rounds:
        for step in rounds:
            if step.last if stop == "before the final reads" else step.evaluations > 25:
                break
    second = tuned(tmp_path / "parts", method, options, head, budget=60, resume=True)
    assert lasting(second.result) == lasting(whole.result)
    assert second.session.ledger.followed == whole.session.ledger.followed
    prompts = [(tmp_path / name / "run/artifact/prompt.safetensors").read_bytes() for name in ("whole", "parts")]
    assert prompts[0] == prompts[1]


def test_the_test_split_is_staged_once_for_trials_of_other_seeds_and_prompts(tmp_path, monkeypatch):
    whole = load_pool("toy:")
    monkeypatch.setattr("tuning.compare.opened.load_pool", lambda uri: whole)
    staged, stage = [], ToyBox.stage
    monkeypatch.setattr(ToyBox, "stage", lambda self, source: staged.append(len(source)) or stage(self, source))
    told = []
    for seed in (1, 2):
        for method in ("zero-shot", "momentum", "zip", "head:gda"):
            recipe = make_recipe({"task": "toy:traced", "box": "toy:", "method": method, "budget": 4, "seed": seed})
            task, evaluator = opened(recipe)
            trial = Tuning(recipe, tmp_path / "runs" / f"{method}-{seed}", task=task, evaluator=evaluator)
            for _ in trial:
                pass
            told.append(trial.result)
    assert staged.count(len(whole.test)) == 1
    encodes = {(row["method"], row["image_encodes"]) for row in told}
    assert len(encodes) == 4, "each trial's account is as if it were its own"
    assert json.dumps([row["zero_shot_accuracy"] for row in told]).count(str(told[0]["zero_shot_accuracy"])) == 8
