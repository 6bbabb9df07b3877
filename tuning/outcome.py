"""What a run arrives at: a prompt, a head on the answers already paid for, or both.

Knows nothing of how the prompt was found and of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine import heads, mixtures
from engine.core import Array, BoxSpec, Evaluator, Outputs, Task
from engine.errors import RecipeError, RefusedError, nearest
from engine.ledger import Ledger
from engine.objectives import cross_entropy
from engine.phases import phase

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is kept, with its numbers."""

    theta: Array | None = None
    """`(d,)` the selected candidate; None where no prompt belongs to it."""
    zero_shot_accuracy: float
    accuracy: float
    """Both on the test split."""
    val_accuracy: float
    train_loss: float | None
    """Plain cross-entropy on the training rows; None where the box gives no scores."""
    head: str | None = None
    arrays: Mapping[str, Array] = field(default_factory=dict)
    holds_training_data: bool = False


def check_head(name: str | None, spec: BoxSpec | None = None) -> None:
    """Raise for a head that does not exist, or a box that does not give what it needs."""
    if name is None:
        return
    if name not in heads.HEADS:
        raise RecipeError(f"unknown head {name!r}{nearest(name, heads.HEADS)}; allowed are {', '.join(heads.HEADS)}")
    enough = {"features", "scores"} if heads.on_scores(name) else {"features"}
    if spec is not None and not enough & spec.gives:
        raise RefusedError(
            f"head {name} needs a box that gives {' or '.join(sorted(enough))}; {spec.uri} gives "
            f"{', '.join(sorted(spec.gives))}"
        )


@phase("reading the test split")
def of_prompt(
    theta: Array, task: Task, evaluator: Evaluator, ledger: Ledger, *, val_accuracy: float, train_loss: float | None
) -> Outcome:
    """The outcome of a prompt: the test split read once for the template and once for theta."""
    reply = evaluator.call("beside_template", theta)
    ledger.charge_test(reply)
    accuracies = [int(right) / len(task.test) for right in reply.correct]
    return Outcome(
        theta=theta,
        zero_shot_accuracy=accuracies[0],
        accuracy=accuracies[-1],
        val_accuracy=val_accuracy,
        train_loss=train_loss,
    )


@phase("reading the test split")
def of_head(name: str, theta: Array, task: Task, evaluator: Evaluator, ledger: Ledger, seed: int) -> Outcome:
    """A head trained on the features under a prompt, which the training and validation reads have returned already.

    A head on scores is trained on the scores.
    """
    rows: dict[str, Array] = {}
    text, scale = None, 1.0
    for split in SPLITS:
        if heads.on_scores(name):
            scored = Outputs(scores=evaluator.call("scores", split, theta)[None])
            read = heads.inputs(name, scored)
            assert read is not None
            rows[split] = read
        else:
            rows[split], text, scale = evaluator.call("features", split, theta)
    head = heads.fit(name, (rows["train"], task.train.labels), (rows["val"], task.val.labels), text, scale, seed)
    return _of_trained(head, name, theta, rows, task, evaluator, ledger)


@phase("reading the test split")
def of_templates(
    thetas: Array, theta: Array, task: Task, evaluator: Evaluator, ledger: Ledger, *, plain: bool = False
) -> Outcome:
    """The mixture of templates that were asked, on their text features, which have come back already.

    Args:
        thetas: `(T, d)` the templates, the task's own first.
        theta: `(d,)` the one of them that the artifact names.
        plain: the ensemble of all with equal weights, instead of convex weights fitted to the training images.
    """
    rows: dict[str, Array] = {}
    for split in SPLITS:
        rows[split], _, scale = evaluator.call("features", split, np.zeros_like(theta))
    val = rows["val"], task.val.labels
    text = evaluator.call("class_features", thetas)
    if plain:
        head = mixtures.ensemble(text, val, scale)
    else:
        head = mixtures.fit_mixture(text, (rows["train"], task.train.labels), val, scale)
    return _of_trained(head, head.kind, theta, rows, task, evaluator, ledger)


def _of_trained(
    head: Any, name: str, theta: Array, rows: Mapping[str, Array], task: Task, evaluator: Evaluator, ledger: Ledger
) -> Outcome:
    labels = {"train": task.train.labels, "val": task.val.labels, "test": task.test.labels}
    scores = {split: head.scores(table) for split, table in rows.items()}
    reply = evaluator.call("beside_template", theta)
    ledger.charge_test(reply)
    return Outcome(
        theta=theta,
        zero_shot_accuracy=int(reply.correct[0]) / len(task.test),
        accuracy=float((scores["test"].argmax(-1) == labels["test"]).mean()),
        val_accuracy=float((scores["val"].argmax(-1) == labels["val"]).mean()),
        train_loss=float(cross_entropy(Outputs(scores=scores["train"][None]), labels["train"])[0]),
        head=name,
        arrays={f"head.{head.kind}.{key}": np.asarray(value) for key, value in head.state_dict().items()},
        holds_training_data=head.kind == "tip",
    )


def restore_head(arrays: Mapping[str, Array]) -> Any:
    """The head that an artifact's arrays hold."""
    tensors = {name: value for name, value in arrays.items() if name.startswith("head.")}
    kind = next(iter(tensors)).split(".")[1]
    return heads.restore(kind, {name.split(".", 2)[2]: value for name, value in tensors.items()})
