"""The shapes that pass between the rooms of the engine, and the protocols that the rooms keep.

Letters in shapes: P candidates, B rows of a step, N training images, C classes, E joint embedding width, M context
tokens, W token width, H image side in pixels, d searched dimensions, k probes of a step.

Knows nothing of torch, of Ray, or of any particular model, method or data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from engine.errors import RefusedError
from engine.search_space import Space
from engine.task import ImageSource

if TYPE_CHECKING:
    from engine.evaluators.problem import ProblemSpec
    from engine.session import Session
    from engine.tuning_loop import Step

Array = np.ndarray

GIVES = ("labels", "topk", "scores", "features")
ACCEPTS = ("words", "pixels", "context", "tokens")


# ---------------------------------------------------------------------------------------------------------------------
# What passes through the keyhole


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """P decoded candidates: all that passes through the keyhole besides the images. At least one field is set."""

    count: int
    """P. Explicit, because a prompt may leave every part at the template."""
    context: Array | None = None
    """`(P, M, W)` float32 text context vectors, or `(P, C, M, W)`, a context per class; None: the template's own."""
    pixels: Array | None = None
    """`(P, 3, H, H)` float32, added to the image (in [0, 1] units, before normalisation)."""
    words: tuple[str, ...] | None = None
    """P templates, each with one `{}` for the class name."""

    def needs(self) -> frozenset[str]:
        """Which kinds of prompt a box must accept to answer these."""
        return frozenset(kind for kind in ("context", "pixels", "words") if getattr(self, kind) is not None)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> Prompts:
        return Prompts(
            count=len(range(self.count)[part]),
            context=None if self.context is None else self.context[part],
            pixels=None if self.pixels is None else self.pixels[part],
            words=None if self.words is None else self.words[part],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What a box answered for P candidates on B rows: just what it gives, and no more."""

    labels: Array | None = None
    """`(P, B)` int64 predicted classes."""
    topk: tuple[Array, Array] | None = None
    """`(P, B, K)` int64 classes and their float32 log-probabilities, best first."""
    scores: Array | None = None
    """`(P, B, C)` float32 logits or log-probabilities, up to a constant per row."""
    text: Array | None = None
    """`(P or 1, C, E)` float32 L2-normalised class features."""
    image: Array | None = None
    """`(P or 1, B, E)` float32 L2-normalised image features."""
    scale: float = 1.0
    """What the cosine of text and image is multiplied by to make a logit."""
    moves: frozenset[str] = frozenset({"text", "image"})
    """Which features the candidates move; of the others there is one for all of them."""

    def logits(self) -> Array:
        """`(P, B, C)` float32 scores: as returned, or from the returned features (no query).

        Raises RefusedError where the box gives only labels or the top k.
        """
        if self.scores is not None:
            return self.scores
        if self.text is None or self.image is None:
            raise RefusedError("this box gives neither scores nor features; use a method that needs only labels")
        return np.matmul(self.image, self.text.transpose(0, 2, 1)) * np.float32(self.scale)

    def every(self, step: int) -> Outputs:
        """The same for every so manieth row."""
        some = slice(None, None, step)
        return replace(
            self,
            labels=None if self.labels is None else self.labels[:, some],
            topk=None if self.topk is None else (self.topk[0][:, some], self.topk[1][:, some]),
            scores=None if self.scores is None else self.scores[:, some],
            image=None if self.image is None else self.image[:, some],
        )

    def predictions(self) -> Array:
        """`(P, B)` int64 predicted classes, from the richest answer there is."""
        if self.labels is not None:
            return self.labels
        if self.topk is not None:
            return self.topk[0][..., 0]
        return self.logits().argmax(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What answering cost the hardware."""

    sequences: int = 0
    image_encodes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(sequences=self.sequences + other.sequences, image_encodes=self.image_encodes + other.image_encodes)


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """What a box that accepts `context` tells about its text side."""

    context: Array
    """`(M, W)` float32: the template's own token vectors. theta = 0 decodes to these."""
    sigma: float
    """Standard deviation of the token embedding's entries: one unit of theta."""
    vocabulary: Array | None = None
    """`(V, W)` float32 rows of the token embedding, where the box shows them."""
    words: tuple[str, ...] | None = None
    """What its V tokens spell, where they are not all of its tokenizer's; the part of a word ends in a hyphen."""


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """What a box says of itself. A method declares what it needs and is refused by a box that lacks it."""

    uri: str
    gives: frozenset[str]
    accepts: frozenset[str]
    classes: tuple[str, ...]
    template: str
    image_size: int
    """H in pixels."""
    text: TextSpec | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    """What must agree for an artifact to mean the same here: weights hash, preprocessing, activation, URI options.
    Device and builds are provenance, which an artifact notes apart and which need not agree."""
    path: str = "plain"
    """Which way the box computes, in words (`keyhole doctor --box` prints it)."""


Staged = Any
"""A box's own handle on images that it holds: decoded, preprocessed and, where exact, encoded."""


@runtime_checkable
class BlackBox(Protocol):
    """A frozen model seen through its interface."""

    spec: BoxSpec

    def stage(self, source: ImageSource) -> Staged:
        """Bring images to where the box lives, once."""
        ...

    def answer(self, prompts: Prompts, staged: Staged, rows: Array) -> Outputs:
        """What the box gives for each candidate on these rows. Raises RefusedError for a prompt it does not accept."""
        ...

    def knows(self, template: str) -> bool:
        """Whether it can be asked a template in words: it fits the model, and every word of it is known."""
        ...

    def work(self) -> Work:
        """Sequences and image encodes since the last call of `work`."""
        ...


@runtime_checkable
class Towers(Protocol):
    """A box whose two towers can be asked apart: what lets a server encode images of many artifacts together."""

    spec: BoxSpec
    scale: float
    """What the cosine of text and image is multiplied by to make a logit."""

    def pixels(self, images: Iterable[Any]) -> Array:
        """Decode and preprocess: `(n, 3, H, H)` float32 in [0, 1]. May be called from several threads.

        Args:
            images: `images.Encoded`, what its `image` gives, or uint8 RGB arrays `(h, w, 3)`.

        Raises:
            TaskError: An image cannot be read; the message names it.
        """
        ...

    def encode(self, pixels: Array, frames: Array | None = None) -> Array:
        """`(n, E)` float32 L2-normalised features of `pixels`, to which frames `(n, 3, H, H)`, one a row, are added."""
        ...

    def retold(self, classes: Sequence[str], template: str) -> BlackBox:
        """The same frozen model for other classes and another template; the weights are shared.

        Raises:
            TaskError: The names or the template cannot be used.
        """
        ...


# ---------------------------------------------------------------------------------------------------------------------
# What is searched, and how


class Parametrization(Protocol):
    """The map from the searched vector to a prompt. A frozen dataclass, pure and picklable."""

    @property
    def space(self) -> Space:
        """What a method is told of theta."""
        ...

    def decode(self, thetas: Array) -> Prompts:
        """`(P, d)` -> P prompts. theta = 0 decodes to the task's own template."""
        ...


Objective = Callable[[Outputs, Array], Array]
"""Outputs, labels `(B,)` -> losses `(P,)` float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """What a search learns of its candidates, in the order it asked for them."""

    losses: Array
    """`(P,)` float64; NaN: that candidate failed."""
    outputs: Outputs | None = None
    """The table, where it was asked for: on all rows or, of a large one, on evenly spaced rows."""
    labels: Array | None = None
    """`(B',)` int64 of the rows that `outputs` holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a method needs of a box: any one of `gives`, all of `accepts` (empty: whatever the prompt is)."""

    gives: frozenset[str] = frozenset({"scores", "features"})
    accepts: frozenset[str] = frozenset()
    table: bool = False
    """Whether `tell` wants the outputs themselves, not only their losses."""
    whole: bool = False
    """Whether whole answers are held for it, as to fit a head; else losses and text features are all that is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefers:
    """What a method is for, where the recipe leaves it open. None: nothing in particular."""

    prompt: str | None = None
    """The only kind of prompt that it takes."""
    tokens: int | None = None
    """M, of a text context."""
    per_class: bool | int | None = None
    """Whether each class has a text context of its own; a number: where there are no more classes than that."""
    subspace: str | None = None
    """Of text."""
    head: str | None = None
    """Joined to its prompt at the end."""


class Search(Protocol):
    """The running, stateful half of a method: ask / tell / recommend, as in Nevergrad and CMA."""

    def ask(self, limit: int) -> Array:
        """`(P, d)` float32 with 1 <= P <= limit."""
        ...

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        """Answers to the last `ask`, all of them, in the order asked."""
        ...

    def recommend(self) -> Array:
        """`(d,)` float32: the best guess so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Arrays and JSON values that bring this search back to the same bits; they hold until the next `tell`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, of which nothing is trusted: it may come from anybody.

        Raises:
            ArtifactError: the state is not one of such a search.
        """
        ...


@runtime_checkable
class Method(Protocol):
    """A way to a classifier: a frozen dataclass of hyper-parameters whose repr is its configuration."""

    needs: Needs
    prefers: Prefers

    def run(self, session: Session, resume: dict[str, Any] | None = None) -> Iterator[Step]:
        """Spend the session's budget, a `Step` a round; at the end `session.outcome` is what it arrived at.

        Args:
            session: What is asked, and the account.
            resume: The state of an earlier `Step`.

        Raises BudgetError for a budget that does not cover the least that it asks, ArtifactError for another's state.
        """
        ...

    def cost(self, num_train: int, num_val: int, budget: float) -> float:
        """Evaluations that a run spends, at most."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(Feedback):
    """An evaluator's answer for P candidates: what a search learns of it, and what it cost."""

    correct: Array
    """`(P,)` int64: how many of the rows were classified right."""
    pairs: int
    work: Work
    """Of this answer; staging is told apart, since each worker stages for itself."""
    split: str = "train"
    staged: int = 0
    """Images that staging this split encoded, wherever it was done."""
    retries: int = 0
    duplicates: int = 0
    bytes: int = 0


@runtime_checkable
class Evaluator(Protocol):
    """Where candidates are evaluated: Serial or RayPool. Same answers, same account."""

    workers: int
    spec: ProblemSpec
    """What is evaluated."""
    box: BlackBox | None
    """The box, where it is open in this process."""

    def stage(self, split: str) -> None:
        """Bring a split's images to where the box lives, ahead of their first use; it is on the account of that."""
        ...

    def evaluate(self, thetas: Array, rows: Array | None = None, *, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split, train, val or test (None: all rows)."""
        ...

    def read(self, theta: Array | None, split: str, *, whole: bool) -> Reply:
        """The answer for one candidate `(d,)`, or for the template itself (None), on a whole split.

        Its outputs are those of all rows with `whole`, else text features alone, where they are given for the prompt.
        """
        ...

    def describe(self) -> tuple[BoxSpec, Space]:
        """The box's spec, and the space of the prompt."""
        ...

    def decode(self, theta: Array) -> dict[str, Array]:
        """The prompt of one candidate as an artifact keeps it. Nothing is asked of the box."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Device, builds and a canary evaluation, which all workers share."""
        ...

    def close(self) -> None: ...
