"""Heads: classifiers trained on the features or scores that a box returned, with exact gradients and no further query.

Each is a black-box method in its own right, and a rival that a searched prompt must beat or complement. What a grid or
a training run leaves open is chosen by the lowest cross-entropy on the validation rows. A fitted head is a small frozen
dataclass of NumPy arrays. Only `clip-adapter` needs torch.

A new head is a room in this package, or a module elsewhere, and a line in `HEADS`.

Letters: n rows, C classes, E joint embedding width. Features are L2-normalised `(n, E)`, labels `(n,)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pkgutil import resolve_name
from typing import Any, ClassVar, TypeVar

import numpy as np
from scipy.special import log_softmax

from engine.errors import ArtifactError, RecipeError, RefusedError, TaskError, nearest
from engine.objectives import cross_entropy
from engine.protocols import Array, Outputs
from engine.threads import limited

Examples = tuple[Array, Array]
"""Features `(n, E)`, or scores `(n, C)` for a head on scores, and their labels `(n,)`."""

HEADS: dict[str, str] = {
    "linear": "engine.heads.linear:LinearHead.fit",
    "linear-anchored": "engine.heads.linear:fit_linear",
    "gda": "engine.heads.gda:fit_gda",
    "tip": "engine.heads.tip:CacheHead.fit",
    "clip-adapter": "engine.heads.clip_adapter:AdapterHead.fit",
    "auto": "engine.heads:fit_auto",
    "score-linear": "engine.heads.score_heads:fit_score_linear",
    "score-adapter": "engine.heads.score_heads:ScoreAdapterHead.fit",
}
"""NAME of `head:NAME` -> "module:function" that fits it, imported when first used.

Each takes the arguments of `fit` after the name, in order. "module:Class.fit" registers a class of its own, whose
`kind` is NAME; a plain function fits another room's class. Heads named `score-...` read scores `(n, C)`, the others
features.
"""

ABOUT: dict[str, str] = {
    "linear": "A linear classifier trained on image features.",
    "linear-anchored": "The same, held near the zero-shot classifier.",
    "gda": "A Gaussian for each class, added to zero-shot.",
    "tip": "Tip-Adapter: votes of the training images most alike.",
    "clip-adapter": "CLIP-Adapter: a small network on image features.",
    "auto": "The best of these heads on validation images.",
    "score-linear": "A linear classifier on scores, where features are hidden.",
    "score-adapter": "A small network on scores, where features are hidden.",
}
"""What each is, in a line."""

MIXTURE = {"templates": "engine.heads.template_mixture:MixtureHead"}
"""The kind of head that no `head:NAME` fits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head(ABC):
    """A trained head: a frozen dataclass whose fields are arrays and numbers."""

    kind: ClassVar[str]
    """What `restore` knows it by."""
    shapes: ClassVar[Mapping[str, str]]
    """Axes of its arrays, a letter each; its other fields are numbers."""

    val_loss: float = math.nan
    """Cross-entropy on the validation rows, nats."""

    @abstractmethod
    def scores(self, features: Array) -> Array:
        """`(n, E)` features, or `(n, C)` scores for a head on scores -> `(n, C)` float32 logits."""

    @property
    def width(self) -> int:
        """Numbers that it reads per image: E, or C for a head on scores."""
        name, axes = next(iter(self.shapes.items()))
        return getattr(self, name).shape[axes.index("E" if "E" in axes else "C")]

    def state_dict(self) -> dict[str, Array]:
        """NumPy arrays from which `restore` makes the same head."""
        return {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}


Kind = TypeVar("Kind", bound=Head)


def fit(
    name: str, train: Examples, val: Examples, text: Array | None = None, scale: float = 100.0, seed: int = 1
) -> Head:
    """Fit a head by name.

    >>> features = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]], np.float32)
    >>> head = fit("gda", (features, np.array([0, 0, 1, 1])), (features, np.array([0, 0, 1, 1])))
    >>> head.scores(features).argmax(-1).tolist()
    [0, 0, 1, 1]

    Args:
        name: One of `HEADS`.
        train: Features `(n, E)`, or scores `(n, C)` for a head on scores, and labels `(n,)`.
        val: The same of the validation rows.
        text: `(C, E)` text features of the classes; `linear`, `gda` and heads on scores can do without.
        scale: What a cosine is multiplied by to make a logit (the box's).
        seed: For initial weights; only clip-adapter and score-adapter draw any.

    Raises:
        RecipeError: The name is unknown.
        RefusedError: The head needs text features, and there are none.
        TaskError: Features and labels do not fit together.
    """
    if name not in HEADS:
        raise RecipeError(f"head {name!r} is unknown; allowed are {', '.join(HEADS)}{nearest(name, HEADS)}")
    for split, (features, labels) in (("train", train), ("val", val)):
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise TaskError(f"{split} has {features.shape=} and {labels.shape=}; give (n, E) and (n,) with n >= 1")
    if text is None and name not in ("linear", "gda") and not on_scores(name):
        raise RefusedError(f"head {name!r} needs the classes' text features, which this box does not give; use linear")
    fitting = resolve_name(HEADS[name])  # before threads are limited: a library that is loaded later is not
    with limited(1):  # the same bits whoever fits
        return fitting(train, val, text, scale, seed)


def fit_auto(train: Examples, val: Examples, text: Array, scale: float, seed: int) -> Head:
    """The best on validation of every head on features and of none: the classes' own text features, as they are."""
    linear = resolve_name("engine.heads.linear:LinearHead")
    none = validated(linear.of(scale * text, np.zeros(len(text)), chosen=0.0), val)
    names = [name for name in HEADS if name != "auto" and not on_scores(name)]
    return min([none, *(fit(name, train, val, text, scale, seed) for name in names)], key=by_val_loss)


def restore(kind: str, state: Mapping[str, Array], classes: int | None = None) -> Head:
    """The head that `state_dict` was taken of.

    Args:
        kind: Of the head.
        state: Its arrays and numbers, perhaps damaged.
        classes: C, where it is known.

    Raises:
        RecipeError: The kind is unknown.
        ArtifactError: Something is missing or too much, or its type or shape does not fit the rest.
    """
    own = {name: path.removesuffix(".fit") for name, path in HEADS.items() if path.endswith(".fit")}
    kinds = {**own, **MIXTURE}
    if kind not in kinds:
        raise RecipeError(f"head kind {kind[:50]!r} is unknown; allowed are {', '.join(kinds)}{nearest(kind, kinds)}")
    head: Any = resolve_name(kinds[kind])
    names = {field.name for field in fields(head)}
    if wrong := sorted(names ^ set(state)):
        raise ArtifactError(f"head {kind!r} {'lacks' if wrong[0] in names else 'has no'} {wrong[0][:50]!r}")
    sizes = {} if classes is None else {"C": classes}
    for name, array in state.items():
        letters: str = head.shapes.get(name, "")
        dtype = np.int64 if name == "labels" else np.float32 if letters else np.float64
        if (array.dtype, array.ndim) != (dtype, len(letters)) or any(
            sizes.setdefault(letter, count) != count for letter, count in zip(letters, array.shape, strict=True)
        ):
            raise ArtifactError(f"head {kind!r}: {name} is {array.dtype} {array.shape}, which does not fit the rest")
    if "labels" in state and not ((state["labels"] >= 0) & (state["labels"] < sizes["C"])).all():
        raise ArtifactError(f"head {kind!r}: labels name classes that there are not")
    return head(**{name: np.asarray(array) if array.ndim else float(array) for name, array in state.items()})


def on_scores(name: str) -> bool:
    """Whether a head reads scores `(n, C)`, which more boxes give, and not image features `(n, E)`."""
    return name.startswith("score-")


def inputs(name: str, outputs: Outputs) -> Array | None:
    """What a head reads of a box's answer for one candidate: image features `(B, E)`, or log-probabilities `(B, C)`.

    None where the box does not give it.
    """
    if not on_scores(name):
        return None if outputs.image is None else outputs.image[0]
    if outputs.scores is None and outputs.image is None:
        return None
    return log_softmax(outputs.logits()[0].astype(np.float64), axis=-1).astype(np.float32)


def needed(name: str) -> frozenset[str]:
    """What a box must give, any of it, for a head of this name."""
    return frozenset({"features", "scores"}) if on_scores(name) else frozenset({"features"})


def applied(name: str, head: Head, outputs: Outputs) -> Outputs | None:
    """The head's scores `(1, B, C)` for a box's answer to one candidate; None where it lacks what the head reads.

    Raises ArtifactError where the features are of another width than those it was trained on.
    """
    read = inputs(name, outputs)
    if read is None:
        return None
    if read.shape[1] != head.width:
        raise ArtifactError("a head fits only the classes and the features that it was trained on")
    with np.errstate(over="ignore", invalid="ignore"):
        return Outputs(scores=head.scores(read)[None])


# For the rooms.


def validated(head: Kind, val: Examples) -> Kind:
    """The head with its `val_loss`."""
    return replace(head, val_loss=float(cross_entropy(Outputs(scores=head.scores(val[0])[None]), val[1])[0]))


def by_val_loss(head: Head) -> float:
    """The key by which the best of several heads is chosen."""
    return head.val_loss
