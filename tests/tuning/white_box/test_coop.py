"""White-box CoOp: on a tiny open_clip model of random weights, and on the embedded one; and the rule of admission."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from bench import task_admission
from engine.boxes import open_box
from engine.errors import RecipeError, RefusedError
from engine.protocols import Array, Prompts
from engine.task import Split, Task
from tuning.data.load_task import few_shot_rows, load_pool, load_task
from tuning.white_box.coop import coop, encode, fit_coop

COLORS = {"red": (210, 30, 30), "green": (30, 210, 30), "blue": (30, 30, 210), "grey": (120, 120, 120)}


@dataclass(frozen=True)
class Patches:
    """Noisy patches of one colour a class."""

    labels: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Sequence[int]) -> list[Array]:
        values = list(COLORS.values())
        return [
            np.clip(
                np.random.default_rng((self.seed, row)).normal(values[self.labels[row]], 40, (16, 16, 3)), 0, 255
            ).astype(np.uint8)
            for row in map(int, rows)
        ]


def split(seed: int, count: int) -> Split:
    labels = np.repeat(np.arange(len(COLORS)), count)
    return Split(source=Patches(tuple(labels.tolist()), seed), labels=labels)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        uri="made:colors",
        classes=tuple(COLORS),
        template="a photo of a {}.",
        train=split(1, 8),
        val=split(2, 4),
        test=split(3, 20),
    )


@pytest.fixture(scope="module")
def box(task: Task):
    """A CLIP of two layers, with random weights; its words are enlarged, so that they matter beside their positions."""
    import open_clip
    import torch

    from engine.boxes import BoxRequest
    from engine.boxes.clip.box import ClipBox
    from engine.preprocessing import Preprocess

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"layers": 1, "width": 32, "patch_size": 8, "image_size": 16, "head_width": 16},
        text_cfg={"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )
    with torch.no_grad():
        model.token_embedding.weight.mul_(5)
    preprocess = Preprocess(
        size=16, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bicubic", resize="shortest", fill=0
    )
    return ClipBox(
        model,
        open_clip.SimpleTokenizer(context_length=24),
        preprocess,
        BoxRequest(uri="made:tiny", classes=task.classes, template=task.template),
        identity={},
    )


def test_coop_lowers_the_loss_and_selects_on_validation(box, task: Task) -> None:
    result = coop(box, task, steps=60)
    first, losses = result.history[0], [row["val_loss"] for row in result.history]
    assert first["step"] == 0 and len(result.history) == 21
    assert result.train_loss < first["train_loss"] - 0.2
    assert result.val_loss == min(losses) and result.val_loss < first["val_loss"]
    assert result.accuracy is not None and result.accuracy > 0.5
    assert result.context.shape == box.spec.text.context.shape and not np.allclose(
        result.context, box.spec.text.context
    )


def test_the_first_look_is_the_box_itself(box, task: Task) -> None:
    from engine.objectives import cross_entropy

    result = coop(box, task, steps=1, lr=1e-6)
    outputs = box.answer(Prompts(count=1), box.stage(task.train.source), np.arange(len(task.train)))
    assert result.history[0]["train_loss"] == pytest.approx(
        float(cross_entropy(outputs, task.train.labels)[0]), abs=1e-5
    )


def test_the_box_answers_for_the_found_context(box, task: Task) -> None:
    """What CoOp says it reached is what the box answers for that context."""
    result = coop(box, task, steps=20)
    outputs = box.answer(
        Prompts(count=1, context=result.context[None]), box.stage(task.test.source), np.arange(len(task.test))
    )
    assert (outputs.predictions()[0] == task.test.labels).mean() == result.accuracy
    assert np.allclose(outputs.text[0], result.text, atol=1e-5)


def test_the_same_bits_twice(box, task: Task) -> None:
    one, two = (coop(box, task, steps=20, tokens=6, seed=3) for _ in range(2))
    assert np.array_equal(one.context, two.context) and one.history == two.history


@pytest.mark.parametrize("tokens", [1, 4, 7])
def test_tokens_come_from_the_template(box, task: Task, tokens: int) -> None:
    result = coop(box, task, steps=1, lr=1e-6, tokens=tokens, seed=3)
    own = box.spec.text.context
    shared = min(tokens, len(own))
    assert result.context.shape == (tokens, own.shape[1])
    assert np.allclose(result.context[tokens - shared :], own[len(own) - shared :], atol=1e-6)


def test_the_test_split_is_read_once_at_the_end(box, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr("tuning.white_box.coop.encode", lambda box, part: reads.append(len(part)) or encode(box, part))
    with_test = coop(box, task, steps=20)
    assert reads == [len(task.train), len(task.val), len(task.test)]
    train, val = ((encode(box, part), part.labels) for part in (task.train, task.val))
    without = fit_coop(box, train, val, steps=20)
    assert with_test.accuracy is not None and without.accuracy is None
    assert np.array_equal(with_test.context, without.context)


def test_coop_refuses_what_it_cannot_do(box, task: Task) -> None:
    toy = open_box("toy:", classes=("a", "b"), template="a {}")
    with pytest.raises(RefusedError, match="shows no text tower"):
        coop(toy, load_task("toy:"), steps=1)
    scores = open_box("toy:?gives=scores", classes=("a", "b"), template="a {}")
    with pytest.raises(RefusedError, match="a ceiling needs features"):
        coop(scores, load_task("toy:"), steps=1)
    for wrong in ({"steps": 0}, {"lr": 0.0}, {"tokens": 0}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}="):
            coop(box, task, **wrong)


def test_coop_is_above_zero_shot_on_real_handwriting() -> None:
    """The premise of everything that is measured here: there is something to gain. The test split stays closed."""
    pool = load_pool("mini:digits")
    box = open_box("mini:resnet", classes=pool.classes, template=pool.template)
    train, val = few_shot_rows(pool, shots=16, seed=1)
    fresh = np.setdiff1d(np.arange(len(pool.train)), np.concatenate([train, val]))
    features, labels = encode(box, pool.train), pool.train.labels
    examples = [(features[rows], labels[rows]) for rows in (train, val, fresh)]
    result = fit_coop(box, *examples[:2], steps=60)
    template = box.answer(Prompts(count=1), box.stage(pool.train.subset(fresh[:1]).source), np.arange(1)).text[0]
    before = ((examples[2][0] @ template.T).argmax(-1) == examples[2][1]).mean()
    assert result.val_loss < result.history[0]["val_loss"]
    assert ((examples[2][0] @ result.text.T).argmax(-1) == examples[2][1]).mean() > before + 0.05


# ---------------------------------------------------------------------------------------------------------------------
# Admission


def test_paired_gain_and_its_error() -> None:
    before = np.array([[0, 0, 1, 1, 0, 1]], bool)
    after = np.array([[1, 1, 1, 0, 0, 1]], bool)
    gain, error = task_admission.paired(before, after, np.array([[1, 1, 1, 1, 1, 0]], bool))
    change = np.array([1, 1, 0, -1, 0])
    assert gain == pytest.approx(change.mean()) and error == pytest.approx(change.std(ddof=1) / np.sqrt(5))
    many = np.random.default_rng(0).random((3, 400)) < 0.5
    gain, error = task_admission.paired(many, many | (np.random.default_rng(1).random((3, 400)) < 0.5), many | True)
    assert gain == pytest.approx(0.25, abs=0.05) and 0 < error < 0.05
    above = task_admission.clearly_above
    assert above(0.10, 0.02) and not above(0.10, 0.06) and not above(0.02, 0.001)


def test_admission_measures_and_compares_the_mark(monkeypatch: pytest.MonkeyPatch, command, box, task: Task) -> None:
    pool = replace(task, train=split(1, 30), val=replace(task.val, source=Patches((), 0), labels=np.zeros(0, np.int64)))
    monkeypatch.setattr(task_admission, "load_pool", lambda uri: replace(pool, uri=uri, control=uri.endswith("wrong")))
    monkeypatch.setattr(task_admission, "open_box", lambda uri, **names: box)
    monkeypatch.setattr(task_admission, "fit_coop", partial(fit_coop, steps=20))
    measured = ("bench", "tasks", "--shots", "4", "--tasks")
    code, out, _ = command(*measured, "made:right", "--seeds", "1,2", "--json")
    found = task_admission.Admission(**json.loads(out)["made:right"])
    assert code == 0 and found.images == 4 * (30 - 8) and found.admitted and found.agrees
    assert found.linear > 0.9 and found.linear_gain == pytest.approx(found.linear - found.zero_shot, abs=1e-9)
    code, out, _ = command(*measured, "made:right", "--seeds", "1")
    assert code == 0 and "| made:right | 88 |" in out
    code, _, err = command(*measured, "made:wrong", "--seeds", "1", "--json")
    assert code == 1 and "made:wrong" in err
    code, _, err = command("bench", "tasks", "--tasks", "made:right", "--shots", "400")
    assert code == 2 and "400 shots" in err
