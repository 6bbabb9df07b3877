"""What a run arrives at: a prompt, a head on the answers already paid for, or both; its accuracy, and its artifact.

Knows nothing of how the prompt was found and of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine import heads
from engine.artifact import Artifact
from engine.classifier import Classifier
from engine.errors import RecipeError, RefusedError, nearest
from engine.evaluators.problem import installed_version
from engine.heads import Head, template_mixture
from engine.objectives import cross_entropy
from engine.phases import phase
from engine.protocols import Array, BoxSpec, Outputs
from engine.session import Session

PROMPT_SETTINGS = ("tokens", "per_class", "subspace", "width", "grid")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What is kept. The test split has not been read for it."""

    theta: Array | None = None
    """`(d,)` the selected candidate; None where no prompt of the session belongs to it."""
    val_accuracy: float | None
    """None without validation images."""
    train_loss: float | None
    """Plain cross-entropy on the training rows; None where the box gives no scores."""
    head: Head | None = None
    head_name: str | None = None
    """What it was asked for by: `auto` fits a head of another kind."""
    text: Array | None = None
    """`(C, E)` class features in place of the session's own, of a prompt that was found outside of it."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """What else the artifact holds."""


def check_head(name: str | None, spec: BoxSpec | None = None) -> None:
    """Raise RecipeError for a head that does not exist, RefusedError for a box that does not give what it needs."""
    if name is None:
        return
    if name not in heads.HEADS:
        raise RecipeError(f"unknown head {name!r}{nearest(name, heads.HEADS)}; allowed are {', '.join(heads.HEADS)}")
    enough = heads.needed(name)
    if spec is not None and not enough & spec.gives:
        raise RefusedError(
            f"head {name} needs a box that gives {' or '.join(sorted(enough))}; {spec.uri} gives "
            f"{', '.join(sorted(spec.gives))}"
        )


def with_head(name: str, theta: Array, session: Session) -> Outcome:
    """A head trained on the features under a prompt, or on its scores.

    Where only text moves they have come back already; otherwise the training split is read once more.
    Raises RefusedError where the box does not give what the head reads.
    """
    outputs = session.outputs(theta, "train")
    rows = [heads.inputs(name, outputs), heads.inputs(name, session.outputs(theta, "val"))]
    train, val = (
        (_given(read, session), session.task.splits[split].labels)
        for read, split in zip(rows, ("train", "val"), strict=True)
    )
    if heads.on_scores(name):
        head = heads.fit(name, train, val, None, 1.0, session.settings.seed)
    else:
        assert outputs.text is not None
        head = heads.fit(name, train, val, outputs.text[0], outputs.scale, session.settings.seed)
    return _trained(head, name, theta, train, val)


def with_mixture(thetas: Array, theta: Array, session: Session, *, plain: bool = False) -> Outcome:
    """The mixture of templates that were evaluated, on their text features, which came back then.

    Args:
        thetas: `(T, d)` the templates, the task's own first.
        theta: `(d,)` the one of them that the artifact names.
        session: one that keeps outputs.
        plain: the ensemble of all with equal weights, instead of convex weights fitted to the training images.
    """
    outputs = [session.outputs(np.zeros_like(theta), split) for split in ("train", "val")]
    train, val = (
        (_given(None if told.image is None else told.image[0], session), session.task.splits[split].labels)
        for told, split in zip(outputs, ("train", "val"), strict=True)
    )
    text, scale = session.class_features(thetas), outputs[0].scale
    if plain:
        head = template_mixture.ensemble(text, val, scale)
    else:
        head = template_mixture.fit_mixture(text, train, val, scale)
    return _trained(head, head.kind, theta, train, val)


@phase("reading the test split")
def accuracies_on_test(outcome: Outcome, session: Session) -> tuple[float, float]:
    """Accuracy of the bare template and of what is kept, fractions of 1: the test split is read once for each."""
    count = session.size("test")
    zero_shot = int(session.zero_shot().correct[0]) / count
    if outcome.head is None and outcome.text is None:
        assert outcome.theta is not None
        return zero_shot, int(session.read(outcome.theta, "test").correct[0]) / count
    features_stay = session.free_looks and not heads.on_scores(outcome.head_name or "")
    if outcome.theta is None or features_stay:
        outputs = session.zero_shot().outputs
    else:
        outputs = session.outputs(outcome.theta, "test")
    assert outputs is not None
    if outcome.text is not None:
        outputs = replace(outputs, text=outcome.text[None])
    if outcome.head is not None and outcome.head_name is not None:
        found = heads.applied(outcome.head_name, outcome.head, outputs)
        assert found is not None
        outputs = found
    return zero_shot, float((outputs.predictions()[0] == session.task.test.labels).mean())


def artifact_of(
    outcome: Outcome, session: Session, accuracies: tuple[float, float] | None = None, **about: Any
) -> Artifact:
    """The artifact of what is kept.

    Args:
        outcome: with its theta evaluated, or read.
        session: that it was found in.
        accuracies: of the test split, zero-shot and tuned; None: it has not been read.
        **about: entries of `artifact_schema.Metadata` that are told otherwise than by the session.
    """
    task, spec, ledger = session.task, session.spec, session.ledger
    prompt = session.evaluator.spec.prompt
    options = {"subspace": "full", **prompt, **prompt.get("options", {})}
    zero_shot, accuracy = accuracies or (None, None)
    arrays = {} if outcome.theta is None else {"theta": outcome.theta, **session.prompt(outcome.theta)}
    if outcome.head is not None:
        state = outcome.head.state_dict()
        arrays |= {f"head.{outcome.head.kind}.{key}": np.asarray(value) for key, value in state.items()}
    holds_training_data = outcome.head is not None and outcome.head.kind == "tip"
    meta = {
        "keyhole": release(),
        "box": session.evaluator.spec.uri,
        "identity": spec.identity,
        "provenance": {**session.evaluator.fingerprint(), "path": spec.path},
        "task": {"uri": task.uri, "shots": task.shots, "half": task.half, "seed": task.seed},
        "classes": list(task.classes),
        "template": task.template,
        "parametrization": {"name": prompt["name"], **{key: options.get(key) for key in PROMPT_SETTINGS}},
        "method": "a loop of one's own",
        "head": outcome.head_name,
        "ledger": ledger.counts(),
        "metrics": {
            "test_images": len(task.test),
            "zero_shot_accuracy": zero_shot,
            "accuracy": accuracy,
            "val_accuracy": outcome.val_accuracy,
            "train_loss": outcome.train_loss,
        },
        "contains": dict.fromkeys(("training_features", "training_labels"), holds_training_data),
        "licence": {"artifact": None, "box": None, "data": None},
        **about,
    }
    return Artifact(meta=meta, arrays={**arrays, **outcome.arrays})


def classifier_of(session: Session, theta: Array | None) -> Classifier:
    """`Session.classifier`."""
    outcome = session.outcome
    if theta is not None:
        theta = np.asarray(theta, np.float32)
        val = session.read(theta, "val") if session.size("val") else None
        accuracy = None if val is None else int(val.correct[0]) / session.size("val")
        outcome = Outcome(theta=theta, val_accuracy=accuracy, train_loss=session.train_loss(theta))
    if outcome is None:
        raise RecipeError("no method has run in this session; say which candidate: classifier(search.recommend())")
    return Classifier(artifact_of(outcome, session), box=session.evaluator.box)


def release() -> str:
    """The installed version of Keyhole."""
    return installed_version("keyhole") or "source"


def _given(rows: Array | None, session: Session) -> Array:
    if rows is None:
        raise RefusedError(
            f"a head needs features, and box {session.spec.uri} gives {sorted(session.spec.gives)}; "
            "use a prompt method or a box that gives features"
        )
    return rows


def _trained(head: Head, name: str, theta: Array, train: heads.Examples, val: heads.Examples) -> Outcome:
    return Outcome(
        theta=theta,
        val_accuracy=float((head.scores(val[0]).argmax(-1) == val[1]).mean()),
        train_loss=float(cross_entropy(Outputs(scores=head.scores(train[0])[None]), train[1])[0]),
        head=head,
        head_name=name,
    )
