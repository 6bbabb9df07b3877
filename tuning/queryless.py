"""Methods that search no prompt: the template itself, heads on returned features, white-box ceilings.

They pay in the same ledger: the training and validation images that they had to send once.
Knows nothing of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine import heads
from engine.core import Array, BoxSpec, Evaluator, Outputs, Task
from engine.errors import RecipeError, RefusedError, nearest
from engine.ledger import Ledger
from engine.objectives import cross_entropy
from tuning.recipe import Recipe

CEILINGS = ("coop",)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method arrived at."""

    spec: BoxSpec
    theta: Array | None = None
    thetas: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """Candidates for the final test read, theta = 0 first, the selected one last."""
    accuracies: list[float] | None = None
    """The final test read where it was not of candidates: zero-shot first, the selected last."""
    val_accuracy: float
    train_loss: float | None
    head: str | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    holds_training_data: bool = False


def names() -> tuple[str, ...]:
    """The names of these methods."""
    return ("zero-shot", *(f"head:{name}" for name in heads.HEADS), *(f"ceiling:{name}" for name in CEILINGS))


def is_queryless(method: str) -> bool:
    """Whether a name is of this kind (existing or not)."""
    return method == "zero-shot" or method.startswith(("head:", "ceiling:"))


def check(method: str, options: Mapping[str, Any]) -> None:
    """Raise RecipeError for a name that does not exist, or options that nobody reads."""
    if method not in names():
        raise RecipeError(f"unknown method {method!r}{nearest(method, names())}; allowed are {', '.join(names())}")
    if options:
        raise RecipeError(f"method {method} has no options, but got {sorted(options)}")


def cost(task: Task) -> float:
    """Evaluations that one of them pays at most: the training and validation images, sent once."""
    return 1 + len(task.val) / len(task.train)


def fit(recipe: Recipe, task: Task, evaluator: Evaluator, ledger: Ledger) -> Outcome:
    """Run the method of this name. Raises RefusedError on a box that lacks what it needs."""
    spec, dim, _ = evaluator.call("describe")
    template = np.zeros((1, dim), np.float32)
    train = evaluator.evaluate(template)
    ledger.charge(train)
    if recipe.method == "zero-shot":
        return Outcome(
            spec=spec,
            theta=template[0],
            thetas=template,
            val_accuracy=float("nan") if not len(task.val) else _accuracy(evaluator, ledger, template, len(task.val)),
            train_loss=evaluator.call("cross_entropy", template[0]),
        )
    if recipe.method.startswith("ceiling:"):
        return _ceiling(recipe, task, evaluator, ledger, spec)
    return _head(recipe, task, evaluator, ledger, spec, template)


def _accuracy(evaluator: Evaluator, ledger: Ledger, template: Array, num_val: int) -> float:
    reply = evaluator.evaluate(template, split="val")
    ledger.charge(reply)
    return float(reply.correct[0] / num_val)


def _head(recipe: Recipe, task: Task, evaluator: Evaluator, ledger: Ledger, spec: BoxSpec, template: Array) -> Outcome:
    if "features" not in spec.gives:
        raise RefusedError(
            f"method {recipe.method} needs a box that gives features; {spec.uri} gives {', '.join(sorted(spec.gives))}"
        )
    name = recipe.method.removeprefix("head:")
    _accuracy(evaluator, ledger, template, len(task.val))
    outputs = evaluator.evaluate(template, np.arange(1), table=True).outputs
    assert outputs is not None and outputs.text is not None
    text, scale = outputs.text[0], outputs.scale
    features = {split: evaluator.call("image_features", split) for split in ("train", "val", "test")}
    head = heads.fit(
        name, (features["train"], task.train.labels), (features["val"], task.val.labels), text, scale, recipe.seed
    )
    ledger.charge_test(evaluator.evaluate(template, split="test"))

    def accuracy(scores: Array, labels: Array) -> float:
        return float((scores.argmax(-1) == labels).mean())

    return Outcome(
        spec=spec,
        accuracies=[
            accuracy(features["test"] @ text.T, task.test.labels),
            accuracy(head.scores(features["test"]), task.test.labels),
        ],
        val_accuracy=accuracy(head.scores(features["val"]), task.val.labels),
        train_loss=float(cross_entropy(Outputs(scores=head.scores(features["train"])[None]), task.train.labels)[0]),
        head=name,
        arrays={
            "text_features": text,
            **{f"head.{head.kind}.{key}": np.asarray(value) for key, value in head.state_dict().items()},
        },
        holds_training_data=head.kind == "tip",
    )


def _ceiling(recipe: Recipe, task: Task, evaluator: Evaluator, ledger: Ledger, spec: BoxSpec) -> Outcome:
    from engine.boxes import open_box
    from tuning.ceiling import coop

    box = open_box(
        recipe.box, classes=task.classes, template=task.template, device=recipe.device, threads=recipe.pool.threads
    )
    if not hasattr(box, "text_tower"):
        raise RefusedError(f"{recipe.method} needs gradients, so a local model; box {recipe.box} shows none")
    result = coop(box, task, tokens=recipe.prompt.tokens, seed=recipe.seed)
    # The test read is booked as that of any other method: the template and the selected prompt.
    for _ in range(2):
        reply = evaluator.evaluate(np.zeros((1, evaluator.call("describe")[1]), np.float32), split="test")
        ledger.charge_test(reply)
    return Outcome(
        spec=spec,
        accuracies=[float(reply.correct[0] / len(task.test)), result.accuracy],
        val_accuracy=result.val_accuracy,
        train_loss=result.train_loss,
        arrays={"context": np.asarray(result.context, np.float32)},
    )
