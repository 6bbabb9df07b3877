"""The search bench: trials are made once, tables say what rows say, and each ablation takes out what it names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench import ablation, search, search_page, search_steps, search_trials
from bench.search_trials import Arm, Job, trial, with_heads
from engine import search as methods
from engine.errors import RecipeError
from engine.protocols import Feedback, Outputs
from engine.search_space import Space

WHERE = {"box": "toy:", "shots": 4, "prompt": {"name": "text"}}
TOY = ["--tasks", "toy:", "--box", "toy:", "--shots", "4", "--processes", "0"]


def job(word: str, budget: float = 30, **where) -> Job:
    return Job.of(Arm.read(word), "toy:", 1, budget, {**WHERE, **where})


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


def test_words_carry_options():
    arm = Arm.read("cbbt:rule=adam:lr=0.01")
    assert arm == Arm(label="cbbt rule=adam lr=0.01", method="cbbt", options={"rule": "adam", "lr": 0.01})
    assert Arm.read("nevergrad:CMA").options == {}
    for word in ("momentun", "momentum:radios=1", "momentum:radius=x"):
        with pytest.raises(RecipeError):
            Arm.read(word)


def test_trials_that_differ_in_anything_are_not_taken_for_each_other():
    words = [job("momentum"), job("momentum:k=3"), job("momentum", 40), job("momentum", shots=2), job("bpt-vlm")]
    words += [job("momentum", prompt={"name": "text", "tokens": 2}), job("momentum", prompt={"subspace": "random:8"})]
    words += [job("momentum", prompt={"name": "pixels"}), job("momentum:prompt.per_class=true")]
    keys = [search_trials._key(vars_of(one)) for one in words]
    assert len(set(keys)) == len(words)
    assert words[4].prompt["subspace"] == "random:1/8"
    # A method whose default has changed since.
    assert search_trials._key({**vars_of(words[0]), "settings": "Momentum(k=4)"}) != keys[0]


def vars_of(one: Job) -> dict:
    return {name: getattr(one, name) for name in Job.__dataclass_fields__}


@pytest.mark.parametrize("word", search.METHODS)
def test_every_method_has_a_step_size_and_its_default_is_among_the_five(word):
    arm = Arm.read(word)
    candidates = search_steps.tried(arm)
    assert len({candidate.label for candidate in candidates}) == 5
    made = [methods.make(candidate.method, candidate.options) for candidate in candidates]
    assert len({repr(method) for method in made}) == 5
    (option,) = candidates[0].options.keys() - arm.options.keys()
    default = getattr(methods.make(arm.method, arm.options), option)
    assert default in (None, candidates[search_steps.FACTORS.index(1.0)].options[option])
    assert search_steps.tried(candidates[0]) == []


def test_the_step_size_of_lowest_rank_by_validation_loss_is_taken():
    def run(arms):
        # On task c, whose losses are large, 0.3 is far ahead; 0.9 is best more often.
        losses = {"momentum radius=0.9": (0.1, 0.1, 40.0), "momentum radius=0.3": (0.2, 0.9, 1.0)}
        return [
            {"label": arm.label, "task": task, "seed": 1, "val_loss": loss, "best_loss": -1.0, "evaluations": 50.0}
            for arm in arms
            for task, loss in zip("abc", losses.get(arm.label, (2.0, 2.0, 50.0)), strict=True)
        ]

    arms, told = search_steps.choose([Arm.read("momentum"), Arm.read("bar:lr=1"), Arm.read("zip")], run)
    assert arms[:2] == [Arm(label="momentum", method="momentum", options={"radius": 0.9}), Arm.read("bar:lr=1")]
    assert arms[2].options == {"a": 0.01}, "all alike: the default"
    assert told.keys() == {"momentum", "zip"}
    assert told["momentum"]["evaluations"] == 750 and not told["momentum"]["at_edge"]
    text = search_steps.table(told)
    assert "**0.9: 0.3**" in text and "1,500 evaluations" in text


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


def test_a_run_tells_tables_curves_and_json_and_is_not_repeated(tmp_path, capsys, monkeypatch):
    words = [*TOY, "--methods", "momentum,craft", "--budgets", "20,60", "--seeds", "1,2", "--out", str(tmp_path)]
    words += ["--step-sizes", "--step-budget", "20", "--step-seeds", "7"]
    assert search.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "search.json").read_text())
    assert list(told["methods"]) == ["momentum", "craft", "craft, with its score-adapter"]
    assert told["step_sizes"]["momentum"]["runs"] == 5
    chosen = told["step_sizes"]["momentum"]["chosen"]
    assert told["methods"]["momentum"]["options"] == {"radius": chosen}
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 + 2
    losses = [row["best_loss"] for row in rows if row["method"] == "momentum" and row["budget"] == 60]
    assert told["methods"]["momentum"]["budgets"]["60"]["best_loss"][0] == pytest.approx(np.mean(losses))
    assert all(row["evaluations"] <= row["budget"] for row in rows if "evaluations" in row)
    assert json.loads((tmp_path / "step_sizes.json").read_text()) == told["step_sizes"]
    assert "`craft, with its score-adapter`" in (tmp_path / "search.md").read_text()
    assert (tmp_path / "search.png").stat().st_size > 10_000

    # Killed in the middle of the last line: that trial alone is made again.
    text = (tmp_path / "trials.jsonl").read_text()
    (tmp_path / "trials.jsonl").write_text(text[:-30])
    made = []
    monkeypatch.setattr(search_trials, "trial", lambda job: made.append(job) or trial(job))
    assert search.main([*words, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(made) == 1
    for method in (*told["methods"].values(), *again["methods"].values()):
        del method["evaluations_per_cpu_second"]
    assert again == told


def test_user_mistakes_end_with_2(tmp_path, capsys):
    out = [*TOY, "--out", str(tmp_path)]
    assert search.main([*out, "--methods", "momentun"]) == 2
    assert search.main([*out, "--seeds", "one"]) == 2
    assert search.main([*out, "--step-sizes", "--seeds", "1,101"]) == 2
    assert search.main([*out, "--step-sizes", "--ablation"]) == 2
    assert "momentum" in capsys.readouterr().err and not (tmp_path / "trials.jsonl").exists()


def test_a_method_with_a_head_stands_twice():
    row = {"label": "craft", "best_loss": 1.0, "accuracy": 0.5}
    head = {"head": "score-adapter", "best_loss": 0.2, "accuracy": 0.8}
    found = with_heads([{**row, "label": "bar"}, {**row, "with_head": head}])
    assert [(row["label"], row["best_loss"]) for row in found] == [
        ("bar", 1.0), ("craft", 1.0), ("craft, with its score-adapter", 0.2),
    ]  # fmt: skip


def test_evaluations_to_a_loss_are_medians_over_seeds():
    known = [
        {"task": "t", "seed": s, "images": 10, "zero_shot_loss": 1.0, "zero_shot_accuracy": 0.1, "coop_loss": 0.0625,
         "coop_accuracy": 0.9} for s in (1, 2, 3)
    ]  # fmt: skip
    curves = {1: (0.5, 0.125), 2: (0.5, 0.25), 3: (0.25, 0.25)}
    rows = [
        {"task": "t", "label": "m", "method": "m", "options": {}, "settings": "", "seed": seed, "budget": budget,
         "evaluations": budget, "cpu_seconds": 2.0, "pairs": budget * 10, "best_loss": loss, "accuracy": 0.5}
        for seed, losses in curves.items() for budget, loss in zip((100.0, 400.0), losses, strict=True)
    ]  # fmt: skip
    told = search_page.summarise(rows, known)
    # Half of the way from 1 to 1/16 in the logarithm is 1/4, three quarters 1/8. Seeds reach 1/4 at 252, 400 and 100.
    assert told["targets"]["t"][:2] == pytest.approx([0.25, 0.125])
    assert told["methods"]["m"]["reached"]["t"][0] == pytest.approx(100 * 4 ** (2 / 3))
    assert told["methods"]["m"]["reached"]["t"][1] is None
    assert told["methods"]["m"]["evaluations_per_cpu_second"] == 125
    text = search_page.tables({"budgets": [100.0, 400.0], **told})
    assert "| `m` | 252 / > 400 / > 400 |" in text and "0.417 ± 0.083 / 0.500 ± 0.000" in text


# ---------------------------------------------------------------------------------------------------------------------
# The ablation


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
    found, whole = begun("bench.ablation:GradientSteps", world, k=12), begun("sketch", world, k=12)
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

    found, other = begun("bench.ablation:LossesOnly", world), begun("bench.ablation:LossesOnly", world)
    before = world(found.recommend()[None]).losses[0]
    for _ in range(12):
        thetas = found.ask(10)
        assert np.array_equal(thetas, other.ask(10))
        found.tell(thetas, world(thetas))
        other.tell(thetas, spoilt(thetas))
    assert world(found.recommend()[None]).losses[0] < 0.8 * before


def test_true_directions_begin_with_the_gradient_and_hold_the_curvature(world):
    found = begun("bench.ablation:TrueDirections", world, k=4)
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


def test_all_parts_of_the_ablation_run(tmp_path, capsys):
    words = [*TOY, "--ablation", "--budgets", "40", "--seeds", "1", "--out", str(tmp_path)]
    assert search.main(words) == 0
    told = json.loads((tmp_path / "ablation.json").read_text())
    assert list(told["methods"]) == [arm.label for arm in ablation.arms()]
    zero = told["references"]["toy:"]["zero_shot_loss"]
    assert all(method["budgets"]["40"]["best_loss"][0] < zero for method in told["methods"].values())
    assert "losses only" in capsys.readouterr().out
