"""A session: all that one run asks of a box. Each answer is booked in its ledger, or answered from what it holds.

Really sent is charged; the test split is booked apart. Where the box gives features and only text moves, what follows
from text features that came back already is not: looks at candidates that were evaluated, class features.
Knows nothing of search methods, of heads and of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from engine.checkpoint import Like, arrays_like
from engine.errors import ArtifactError, RefusedError
from engine.ledger import Ledger
from engine.objectives import cross_entropy
from engine.protocols import Array, Evaluator, Outputs, Reply, Split, Work


class Session:
    """An evaluator, the account, and the answers that are wanted again.

    Args:
        evaluator: where the box is asked.
        ledger: the account, with the budget.
        splits: the task's, by name.
        keep: whether whole outputs are held, for a head or another loss than the searched one; without it only losses
            and text features are.
    """

    def __init__(
        self, evaluator: Evaluator, ledger: Ledger, splits: Mapping[str, Split], *, keep: bool = False
    ) -> None:
        self.evaluator, self.ledger, self.splits, self.keep = evaluator, ledger, splits, keep
        self.spec, self.space = evaluator.describe()
        self.free_looks = "features" in self.spec.gives and "image" not in self.space.moves
        """Whether answers on any split follow from the text features that came back with an evaluation."""
        self._held: dict[tuple[str, bytes], Reply] = {}
        # Where only text moves, an answer is its text features and the images' of its split.
        self._text: dict[bytes, Array] = {}
        self._images: dict[str, Array] = {}
        self._whole_train = False
        self._lost: dict[tuple[str, bytes], tuple[float, int]] = {}
        """Loss and count of what an earlier process of this run has booked, and held."""
        self._lost_train = False

    def size(self, split: str) -> int:
        """Images of a split."""
        return len(self.splits[split]) if split in self.splits else 0

    def evaluate(self, thetas: Array, rows: Array | None = None, *, table: bool = False) -> Reply:
        """Losses of `(P, d)` training candidates on these rows (None: all N). Raises BudgetError before it asks."""
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
        if split == "test" and theta is not None and not theta.any() and self._zero_is_template:
            theta = None
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
        """All that the box says of one candidate on a whole split: held, put together from what is, or read."""
        assert self.keep, "a session that keeps no outputs has none to tell"
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
        return float(cross_entropy(self.outputs(theta, split), self.splits[split].labels)[0])

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
            told = self.outputs(theta, "val") if self.keep else self.read(theta, "test").outputs
            assert told is not None and told.text is not None
            kept["text_features"] = told.text[0]
        return kept

    def templates(self) -> Array:
        """`(T, d)` the whole templates of a prompt in words, that the box knows."""
        return self.evaluator.templates()

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
