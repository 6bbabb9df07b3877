"""What a run arrives at: a prompt, a head on the answers already paid for, or both.

Knows nothing of how the prompt was found and of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine import heads
from engine.errors import RecipeError, RefusedError, nearest
from engine.heads import template_mixture
from engine.objectives import cross_entropy
from engine.phases import phase
from engine.protocols import Array, BoxSpec, Outputs, Reply
from engine.session import Session
from engine.tuning_loop import Look

SPLITS = ("train", "val", "test")
PLAIN = ("auto", "cross-entropy")
"""Objectives that are plain cross-entropy wherever scores or features are given."""


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
def of_prompt(theta: Array, session: Session, *, val_accuracy: float, train_loss: float | None) -> Outcome:
    """The outcome of a prompt: the test split read once for the template and once for theta."""
    return Outcome(
        theta=theta,
        zero_shot_accuracy=_test_accuracy(session.zero_shot(), session),
        accuracy=_test_accuracy(session.read(theta, "test"), session),
        val_accuracy=val_accuracy,
        train_loss=train_loss,
    )


@phase("reading the test split")
def of_head(name: str, theta: Array, session: Session, seed: int) -> Outcome:
    """A head trained on the features under a prompt, or on its scores.

    Where only text moves they have come back already; otherwise the training split is read once more.
    """
    session.zero_shot()  # first: where only text moves, the test images' features come back with it
    rows: dict[str, Array] = {}
    for split in SPLITS:
        read = heads.inputs(name, session.outputs(theta, split))
        if read is None:
            raise RefusedError(
                f"a head needs features, and box {session.spec.uri} gives {sorted(session.spec.gives)}; "
                "use a prompt method or a box that gives features"
            )
        rows[split] = read
    outputs = session.outputs(theta, "train")
    train, val = ((rows[split], session.splits[split].labels) for split in ("train", "val"))
    if heads.on_scores(name):
        head = heads.fit(name, train, val, None, 1.0, seed)
    else:
        assert outputs.text is not None
        head = heads.fit(name, train, val, outputs.text[0], outputs.scale, seed)
    return _of_trained(head, name, theta, rows, session)


@phase("reading the test split")
def of_templates(thetas: Array, theta: Array, session: Session, *, plain: bool = False) -> Outcome:
    """The mixture of templates that were evaluated, on their text features, which came back then.

    Args:
        thetas: `(T, d)` the templates, the task's own first.
        theta: `(d,)` the one of them that the artifact names.
        session: one that keeps outputs.
        plain: the ensemble of all with equal weights, instead of convex weights fitted to the training images.
    """
    rows: dict[str, Array] = {}
    for split in SPLITS:
        outputs = session.outputs(np.zeros_like(theta), split)
        assert outputs.image is not None
        rows[split] = outputs.image[0]
    val = rows["val"], session.splits["val"].labels
    text = session.class_features(thetas)
    if plain:
        head = template_mixture.ensemble(text, val, outputs.scale)
    else:
        head = template_mixture.fit_mixture(text, (rows["train"], session.splits["train"].labels), val, outputs.scale)
    return _of_trained(head, head.kind, theta, rows, session)


def train_loss(session: Session, best: Look, objective: str) -> float | None:
    """Plain cross-entropy of the selected candidate on all training rows: known, or read and booked.

    None where the box gives no scores, or the budget is spent.
    """
    plain = objective in PLAIN
    if not session.spec.gives & {"scores", "features"}:
        return None
    if best.train_loss is not None and plain:
        return best.train_loss
    if not session.holds(best.theta, "train") and session.size("train") > session.ledger.pairs_left:
        return None
    return session.cross_entropy(best.theta) if session.keep else float(session.read(best.theta, "train").losses[0])


def _test_accuracy(reply: Reply, session: Session) -> float:
    return int(reply.correct[0]) / session.size("test")


def _of_trained(head: Any, name: str, theta: Array, rows: Mapping[str, Array], session: Session) -> Outcome:
    labels = {split: session.splits[split].labels for split in SPLITS}
    scores = {split: head.scores(table) for split, table in rows.items()}
    return Outcome(
        theta=theta,
        zero_shot_accuracy=_test_accuracy(session.zero_shot(), session),
        accuracy=float((scores["test"].argmax(-1) == labels["test"]).mean()),
        val_accuracy=float((scores["val"].argmax(-1) == labels["val"]).mean()),
        train_loss=float(cross_entropy(Outputs(scores=scores["train"][None]), labels["train"])[0]),
        head=name,
        arrays={f"head.{head.kind}.{key}": np.asarray(value) for key, value in head.state_dict().items()},
        holds_training_data=head.kind == "tip",
    )
