"""A session: all that one run asks of a box. Each answer is booked in its ledger, or answered from what it holds.

Really sent is charged; the test split is booked apart. Where the box gives features and only text moves, what follows
from text features that came back already is not: looks at candidates that were evaluated, class features.
Knows nothing of how methods search, and of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.checkpoint import Like, arrays_like
from engine.errors import ArtifactError, RecipeError, RefusedError, TaskError
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.serial import Serial
from engine.ledger import Ledger
from engine.objectives import PLAIN, cross_entropy
from engine.protocols import Array, BlackBox, Evaluator, Outputs, Reply, Work
from engine.task import Task

if TYPE_CHECKING:
    from engine.classifier import Classifier
    from engine.outcome import Outcome


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSettings:
    """How a run goes through its budget, whatever the method."""

    seed: int = 1
    """Sets every random draw of the search."""
    batch: int | None = None
    """Most candidates a round; None: as many as the method likes."""
    rows: int | None = None
    """Images a round, chosen from (seed, step); None: all N."""
    looks: int = 20
    """How often the validation split is read to select what is kept."""
    head: str | None = None
    """Joined to the prompt at the end, on the answers already paid for."""
    origin: Array | None = None
    """`(d,)` where the search begins; None: at the template."""


class Session:
    """A box with a prompt for a task, the account, and the answers that are wanted again.

    Use it as a context manager, or `close` it.

    Args:
        box: a URI, an open box for the task's classes and template, or an evaluator that has all of that already:
            `prompt` and `workers` are then its own.
        task: with its three splits; val and test may be empty.
        prompt: kind of prompt, or its settings (`{"name": "text", "tokens": 8}`).
        objective: the loss; auto: cross-entropy, or the error rate where the box gives only labels.
        budget: evaluations allowed.
        workers: Ray actors, which need a URI; 0: in this process.
        keep: whether whole outputs are held, for a head or another loss than the searched one; without it only losses
            and text features are.
        settings: of a run.

    Raises KeyholeError as the opening of the box and the making of the prompt do.
    """

    def __init__(
        self,
        box: str | BlackBox | Evaluator,
        task: Task,
        *,
        prompt: str | Mapping[str, Any] = "text",
        objective: str = "auto",
        budget: float = 1000.0,
        workers: int = 0,
        keep: bool = False,
        settings: RunSettings | None = None,
    ) -> None:
        self.task, self.objective, self.keep = task, objective, keep or objective not in PLAIN
        self.settings = settings or RunSettings()
        self.ledger = Ledger(images=len(task.train), budget=budget)
        self._own = not isinstance(box, Evaluator)
        self.evaluator = box if isinstance(box, Evaluator) else self._opened(box, prompt, workers)
        self.spec, self.space = self.evaluator.describe()
        if self.spec.classes != task.classes:
            self.close()
            raise TaskError(
                f"box {self.spec.uri} was opened for other classes than those of {task.uri}; open it for them"
            )
        self.free_looks = "features" in self.spec.gives and "image" not in self.space.moves
        """Whether answers on any split follow from the text features that came back with an evaluation."""
        self.reserve = min(self.size("val") + len(task.train), self.ledger.pairs_left // 2)
        """Pairs that a search leaves for the last look and the training loss of what it selects."""
        self.outcome: Outcome | None = None
        """What a method has arrived at."""
        self._held: dict[tuple[str, bytes], Reply] = {}
        # Where only text moves, an answer is its text features and the images' of its split.
        self._text: dict[bytes, Array] = {}
        self._images: dict[str, Array] = {}
        self._whole_train = False
        self._lost: dict[tuple[str, bytes], tuple[float, int]] = {}
        """Loss and count of what an earlier process of this run has booked, and held."""
        self._lost_train = False

    def _opened(self, box: str | BlackBox, prompt: str | Mapping[str, Any], workers: int) -> Evaluator:
        told = dict(prompt) if isinstance(prompt, Mapping) else {"name": prompt}
        named = {key: told.pop(key) for key in ("name", "tokens", "subspace") if key in told}
        problem = ProblemSpec(
            box=box,
            classes=self.task.classes,
            template=self.task.template,
            splits=self.task.splits,
            prompt={**named, "seed": self.settings.seed, "options": told},
            objective=self.objective,
        )
        if workers == 0:
            return Serial(problem)
        from engine.evaluators.ray_pool import RayPool

        return RayPool(problem, workers)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers that it has started."""
        if self._own:
            self.evaluator.close()

    @property
    def rows(self) -> int:
        """B, images a round."""
        return min(self.settings.rows or self.ledger.images, self.ledger.images)

    @property
    def candidates(self) -> float:
        """Candidates that the whole budget is worth."""
        return self.ledger.budget * self.ledger.images / self.rows

    @property
    def affordable(self) -> int:
        """Candidates that a search may still ask for."""
        return self.ledger.affordable(self.rows, reserve=self.reserve)

    def size(self, split: str) -> int:
        """Images of a split."""
        return len(self.task.splits[split])

    def evaluate(self, thetas: Array, rows: Array | None = None, *, table: bool = False) -> Reply:
        """What a search is told of `(P, d)` candidates on these training rows (None: all N).

        Raises BudgetError before anything is asked.
        """
        self.ledger.cover(len(thetas) * (self.size("train") if rows is None else len(rows)))
        fetch = self.keep and self.free_looks and rows is None and "train" not in self._images
        reply = self.evaluator.evaluate(thetas, rows, table=table or fetch)
        self.ledger.charge(reply)
        self._whole_train |= rows is None
        if fetch:
            assert reply.outputs is not None and reply.outputs.image is not None
            self._images["train"] = reply.outputs.image[:1]
        return reply if table else replace(reply, outputs=None, labels=None)

    def read(self, theta: Array | None, split: str, *, follows: bool = False) -> Reply:
        """The answer for one candidate `(d,)` on a whole split, asked once; None: for the template itself.

        Args:
            theta: the candidate. On the test split theta = 0 is read as the template wherever it is the same.
            split: train and val are charged, test is booked apart.
            follows: the candidate was evaluated on the training set. If text features came back with it, this answer
                follows from them, and is not charged.

        Raises BudgetError before anything is asked.
        """
        theta = self._as_read(theta, split)
        key = split, key_of(theta)
        if key in self._lost and not self.keep:
            loss, correct = self._lost[key]
            return Reply(losses=np.array([loss]), correct=np.array([correct]), pairs=0, work=Work(), split=split)
        if key not in self._held:
            self._held[key] = self._ask(theta, split, follows and self.free_looks)
        return self._held[key]

    def _ask(self, theta: Array | None, split: str, follows: bool) -> Reply:
        key = split, key_of(theta)
        again = self._again(split, key[1])
        if split != "test" and not follows and not again:
            self.ledger.cover(self.size(split))
        reply = self.evaluator.read(theta, split, whole=self.keep)
        if again:
            self.ledger.charge_again(reply)
        elif split == "test":
            self.ledger.charge_test(reply)
        else:
            self.ledger.charge(reply, pairs=0 if follows else None)
        if self.keep and self.free_looks:
            assert reply.outputs is not None and reply.outputs.text is not None and reply.outputs.image is not None
            self._text[key[1]] = reply.outputs.text
            image = self._images.setdefault(split, reply.outputs.image)
            return replace(reply, outputs=replace(reply.outputs, image=image))
        return reply if self.keep or split == "test" else replace(reply, outputs=None, labels=None)

    def outputs(self, theta: Array, split: str) -> Outputs:
        """All that the box says of one candidate on a whole split: held, put together from what is, or read.

        Raises RecipeError in a session that keeps no outputs.
        """
        if not self.keep:
            raise RecipeError("keep=False: this session holds no outputs, as a head takes them; open it with keep=True")
        text, image = self._text.get(key_of(theta)), self._images.get(split)
        if text is not None and image is not None:
            return Outputs(text=text, image=image, scale=self._scale)
        told = self.read(theta, split).outputs
        assert told is not None
        return told

    def holds(self, theta: Array, split: str) -> bool:
        """Whether `read` and `outputs` need not be paid for."""
        key = key_of(theta)
        return self._again(split, key) or (split, key) in self._held or (key in self._text and split in self._images)

    def _again(self, split: str, key: bytes) -> bool:
        """Whether an earlier process of this run has booked this answer, or what it was put together from."""
        if split == "train" and self.keep and self.free_looks and self._lost_train:
            return ("val", key) in self._lost
        return (split, key) in self._lost

    def zero_shot(self, split: str = "test") -> Reply:
        """The answer for the template itself on a whole split."""
        return self.read(None, split)

    def cross_entropy(self, theta: Array, split: str = "train") -> float:
        """Plain cross-entropy of one candidate on a whole split, whatever the objective."""
        return float(cross_entropy(self.outputs(theta, split), self.task.splits[split].labels)[0])

    def class_features(self, thetas: Array) -> Array:
        """`(P, C, E)` text features of candidates that were evaluated: they came back then, and are not charged again.

        Raises RefusedError where the box gives none.
        """
        if not self.free_looks:
            raise RefusedError(
                f"a mixture needs text features, and box {self.spec.uri} gives {', '.join(sorted(self.spec.gives))}"
            )
        reply = self.evaluator.evaluate(thetas, np.arange(1), table=True)
        self.ledger.charge(reply, pairs=0)
        assert reply.outputs is not None and reply.outputs.text is not None
        text = reply.outputs.text
        return np.broadcast_to(text, (len(thetas), *text.shape[1:]))

    def prompt(self, theta: Array) -> dict[str, Array]:
        """What an artifact keeps of a candidate that was read: its prompt and, where only text moves, class rows."""
        kept = self.evaluator.decode(theta)
        if self.free_looks:
            read = self._held.get(("test", key_of(self._as_read(theta, "test"))))
            told = self.outputs(theta, "val") if self.keep else read.outputs if read else None
            text = self.class_features(theta[None]) if told is None else told.text
            assert text is not None
            kept["text_features"] = text[0]
        return kept

    def train_loss(self, theta: Array, known: float | None = None) -> float | None:
        """Plain cross-entropy of one candidate on all training rows: known, or read and booked.

        None where the box gives no scores, or the budget is spent.

        Args:
            theta: `(d,)`.
            known: the searched loss on all training rows, where the candidate was evaluated on them.
        """
        if not self.spec.gives & {"scores", "features"}:
            return None
        if known is not None and self.objective in PLAIN:
            return known
        if not self.holds(theta, "train") and self.size("train") > self.ledger.pairs_left:
            return None
        return self.cross_entropy(theta) if self.keep else float(self.read(theta, "train").losses[0])

    def classifier(self, theta: Array | None = None) -> Classifier:
        """A candidate `(d,)` as a classifier, None: what a method has arrived at. Validation is read, the test is not.

        Raises BudgetError where the budget does not cover the validation images of a candidate that is not known.
        """
        from engine.outcome import classifier_of

        return classifier_of(self, theta)

    def state_dict(self) -> dict[str, Any]:
        """What was booked and is held, without its outputs: a resumed run asks for those again, and books a retry."""
        told = {k: (float(r.losses[0]), int(r.correct[0])) for k, r in self._held.items() if k[0] == "val"} | self._lost
        return {
            "keys": np.frombuffer(b"".join(key for _, key in told), np.uint8).reshape(len(told), 16),
            "losses": np.array([loss for loss, _ in told.values()], np.float64),
            "correct": np.array([correct for _, correct in told.values()], np.int64),
            "whole_train": self._whole_train or self._lost_train,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what an earlier process of this run has booked. Raises ArtifactError for what cannot be that."""
        arrays = {
            "keys": Like("uint8", (None, 16)),
            "losses": Like("float64", (None,), finite=False),
            "correct": Like("int64", (None,)),
        }
        told = arrays_like(state, arrays, besides=["whole_train"])
        if (
            not isinstance(state["whole_train"], bool)
            or ((told["correct"] < 0) | (told["correct"] > self.size("val"))).any()
        ):
            raise ArtifactError("what its session says of answers that were booked cannot be")
        pairs = zip(told["losses"].tolist(), told["correct"].tolist(), strict=True)
        self._lost = {("val", key.tobytes()): each for key, each in zip(told["keys"], pairs, strict=True)}
        self._lost_train = state["whole_train"]

    def _as_read(self, theta: Array | None, split: str) -> Array | None:
        """The template, None, for a theta that is read as such."""
        zero = theta is not None and split == "test" and not theta.any() and self._zero_is_template
        return None if zero else theta

    @cached_property
    def _zero_is_template(self) -> bool:
        """Whether theta = 0 decodes to the template: with more tokens than it has, its words are repeated."""
        context = self.evaluator.decode(np.zeros(self.space.dim, np.float32)).get("context")
        return context is None or (
            self.spec.text is not None
            and context.shape[-2:] == self.spec.text.context.shape
            and bool((context == self.spec.text.context).all())
        )

    @property
    def _scale(self) -> float:
        return next(reply.outputs.scale for reply in self._held.values() if reply.outputs is not None)


def key_of(theta: Array | None) -> bytes:
    """16 bytes that tell candidates apart; the template itself, None, is another than theta = 0."""
    return hashlib.blake2b(b"" if theta is None else theta.tobytes(), digest_size=16).digest()
