"""The loop: ask, evaluate, tell, look. A generator that everything iterates.

Progress bars, checkpoints, early stopping, trackers and reports are `for` bodies over a method's `run`; there are no
callbacks. Knows nothing of files, of Ray and of the command line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.checkpoint import Like, arrays_like, number, whole_number
from engine.errors import ArtifactError, BoxError, BudgetError, KeyholeError
from engine.outcome import Outcome, with_head
from engine.protocols import Array, Needs, Prefers, Reply, Search
from engine.random_streams import Purpose, rng
from engine.search.warm import Warm
from engine.search_space import Space
from engine.session import Session, key_of

STATE = {"step", "best_loss", "next_look", "seconds", "ledger", "session", "best", "answered", "search"}
"""What a checkpoint holds of a run."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One reading of the validation split."""

    theta: Array
    val_loss: float
    val_accuracy: float
    evaluations: float
    train_loss: float | None = None
    """Loss on all training rows where the candidate was evaluated on them anyway."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One ask / tell round."""

    step: int
    evaluations: float
    pairs: int
    loss: float
    """The lowest loss among this round's candidates."""
    best_loss: float
    look: Look | None
    """The validation reading of this round, on about LOOKS rounds a run."""
    best: Look
    """The selected one so far: the lowest validation loss."""
    seconds: float
    last: bool
    state: Callable[[], dict[str, Any] | None] = field(repr=False)
    """Call it for all that `steps(..., resume=)` needs to go on to the same bits: from the end of the last round that
    the search was told of, or None where it was told of one that did not end. Arrays in it are the search's own: they
    hold until the next round."""

    def record(self) -> dict[str, Any]:
        """The line of `history.jsonl`."""
        return {
            "step": self.step,
            "evaluations": round(self.evaluations, 6),
            "pairs": self.pairs,
            "loss": self.loss,
            "best_loss": self.best_loss,
            "val_loss": self.look.val_loss if self.look else None,
            "val_accuracy": self.look.val_accuracy if self.look else None,
            "seconds": round(self.seconds, 3),
        }


class SearchMethod:
    """A method that searches by ask and tell: a frozen dataclass that inherits this states `needs` and has `start`."""

    needs = Needs()
    prefers = Prefers()

    def start(self, space: Space, candidates: float, seed: int) -> Search:
        """A search from theta = 0 that may ask for so many candidates."""
        raise NotImplementedError

    def begin(self, session: Session) -> Search:
        """Its search in a session, from the template or from where the settings say."""
        settings, space = session.settings, session.space
        if settings.origin is None:
            return self.start(space, session.candidates, settings.seed)
        if space.known is None:
            return Warm(self.start(space, session.candidates, settings.seed), settings.origin)
        # Numbers of words cannot be moved as vectors can: the origin is the first of the parents.
        others = space.known[1:][(space.known[1:] != settings.origin).any(1)]
        known = np.vstack([space.known[:1], settings.origin, others])
        return self.start(replace(space, known=known), session.candidates, settings.seed)

    def run(self, session: Session, resume: dict[str, Any] | None = None) -> Iterator[Step]:
        """Search until the budget is spent; then join the head that the settings name. Raises as `steps`."""
        best = yield from steps(self.begin(session), session, table=self.needs.table, resume=resume)
        session.outcome = arrived(session, best)

    def cost(self, num_train: int, num_val: int, budget: float) -> float:
        """All of the budget."""
        return budget


def arrived(session: Session, best: Look) -> Outcome:
    """The selected candidate, joined by the head that the settings name."""
    if (head := session.settings.head) is not None:
        return with_head(head, best.theta, session)
    accuracy = None if math.isnan(best.val_accuracy) else best.val_accuracy
    train_loss = session.train_loss(best.theta, best.train_loss)
    return Outcome(theta=best.theta, val_accuracy=accuracy, train_loss=train_loss)


def steps(
    search: Search, session: Session, *, table: bool = False, resume: dict[str, Any] | None = None
) -> Generator[Step, None, Look]:
    """Run a search until its budget is spent, one `Step` a round; returns the selected reading.

    Args:
        search: a fresh search (with `resume`: it is brought to where it was).
        session: where candidates are evaluated and booked; the loop never asks for more than its budget covers.
            Without validation images the lowest training loss is selected.
        table: whether the search wants the box's outputs, and the labels, with the losses.
        resume: the state of an earlier `Step`.

    Raises BudgetError for a budget that does not cover the template, ArtifactError for a state of another shape,
    BoxError when theta = 0 itself cannot be evaluated.
    """
    ledger, settings = session.ledger, session.settings
    least = ledger.images + (0 if session.free_looks else session.size("val"))
    if ledger.budget * ledger.images < least:
        raise BudgetError(
            f"budget={ledger.budget}: the template and its validation alone take {least / ledger.images:.2f} "
            "evaluations; allow more"
        )
    run = _Run(search, session)
    if resume is not None:
        run.restore(resume)
    N, B = ledger.images, session.rows
    while True:
        chosen = None if B == N else np.sort(rng(settings.seed, run.step, Purpose.ROWS).choice(N, B, replace=False))
        limit = session.affordable
        if run.step == 0:
            # theta = 0 is always evaluated; room is left for it in case the search begins elsewhere.
            limit = max(limit - 1, 1)
        if limit < 1:
            assert run.best is not None
            return run.best
        thetas = np.ascontiguousarray(search.ask(min(limit, settings.batch or limit)), np.float32)
        if run.step == 0 and thetas[0].any():
            run.evaluate(np.zeros_like(thetas[:1]), chosen, table=False)
        reply = run.evaluate(thetas, chosen, table=table)
        if run.step == 0 and math.isnan(run.zero_loss):
            raise BoxError("the template itself (theta = 0) got no finite loss from this box; check its answers")
        run.between = False
        search.tell(thetas, reply)
        yield run.finish(reply.losses)


class _Run:
    """What changes from round to round; all of it goes into a checkpoint."""

    def __init__(self, search: Search, session: Session) -> None:
        self.search, self.session, self.ledger = search, session, session.ledger
        self.num_val = session.size("val")
        self.every = self.ledger.budget / session.settings.looks
        self.step = 0
        self.best_loss = self.zero_loss = math.nan
        self.best: Look | None = None
        self.answered: dict[bytes, float] = {}
        self.next_look = 0.0
        self.before = 0.0
        self.started = time.monotonic()
        self.account: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        """Ledger and session at the end of the last round: what a round that failed has booked since is asked again."""
        self.between = False
        """Whether the search stands where the last round left it."""

    def evaluate(self, thetas: Array, chosen: Array | None, *, table: bool) -> Reply:
        """Evaluate training candidates; remember what the whole training set said of each."""
        reply = self.session.evaluate(thetas, chosen, table=table)
        for theta, loss in zip(thetas, reply.losses, strict=True):
            if self.step == 0 and math.isnan(self.zero_loss) and not theta.any():
                self.zero_loss = float(loss)
            if chosen is None:
                self.answered[key_of(theta)] = float(loss)
        return reply

    def finish(self, losses: Array) -> Step:
        """Close a round: look at the validation split where it is time, and report."""
        finite = losses[np.isfinite(losses)]
        loss = float(finite.min()) if len(finite) else math.nan
        self.best_loss = float(np.nanmin([self.best_loss, loss])) if len(finite) else self.best_loss
        last = self.session.affordable < 1
        look = None
        if self.step == 0:
            look = self.look(np.zeros_like(self.search.recommend()))
        elif last or self.ledger.evaluations >= self.next_look:
            look = self.look(self.search.recommend())
        if look is not None:
            while self.next_look <= self.ledger.evaluations:
                self.next_look += self.every
            if self.best is None or look.val_loss < self.best.val_loss:
                self.best = look
        assert self.best is not None
        done = self.step
        self.step += 1
        self._mark()
        return Step(
            step=done,
            evaluations=self.ledger.evaluations,
            pairs=self.ledger.pairs,
            loss=loss,
            best_loss=self.best_loss,
            look=look,
            best=self.best,
            seconds=self.before + time.monotonic() - self.started,
            last=last or self.session.affordable < 1,
            state=self.state,
        )

    def _mark(self) -> None:
        """Take note that the search, the ledger and the session stand at the end of a round."""
        self.account, self.asked, self.between = self.ledger.state_dict(), self.session.state_dict(), True

    def look(self, theta: Array) -> Look | None:
        """Read the validation split for one candidate; None if the budget does not cover it."""
        theta = np.asarray(theta, np.float32)
        train_loss = self.answered.get(key_of(theta))
        if not self.num_val:
            loss = self.best_loss if train_loss is None else train_loss
            return Look(
                theta=theta, val_loss=loss, val_accuracy=math.nan, evaluations=self.ledger.evaluations,
                train_loss=train_loss,
            )  # fmt: skip
        follows = train_loss is not None
        free = (self.session.free_looks and follows) or self.session.holds(theta, "val")
        if not free and self.num_val > self.ledger.pairs_left:
            return None
        reply = self.session.read(theta, "val", follows=follows)
        val_loss = float(reply.losses[0])
        return Look(
            theta=theta,
            val_loss=val_loss if math.isfinite(val_loss) else math.inf,
            val_accuracy=float(reply.correct[0] / self.num_val),
            evaluations=self.ledger.evaluations,
            train_loss=train_loss,
        )

    def state(self) -> dict[str, Any] | None:
        """All that a resumed run needs."""
        if not self.between:
            return None
        assert self.best is not None
        keys = list(self.answered)
        return {
            "step": self.step,
            "best_loss": self.best_loss,
            "next_look": self.next_look,
            "seconds": self.before + time.monotonic() - self.started,
            "ledger": self.account,
            "session": self.asked,
            "best": {**vars(self.best)},
            "answered": {
                "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 16),
                "losses": np.array([self.answered[key] for key in keys], np.float64),
            },
            "search": self.search.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ArtifactError for one that is not of such a run."""
        try:
            self._restore(state)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            said = error if isinstance(error, KeyholeError) else repr(error)
            raise ArtifactError(
                f"the checkpoint does not fit this run ({said}); was it written by another version or recipe?"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        if state.keys() != STATE:
            raise ArtifactError("it lacks an entry or has one too many")
        self.ledger.load_state_dict(state["ledger"])
        self.session.load_state_dict(state["session"])
        self.step = whole_number(state["step"], "step", least=1)
        self.best_loss = _loss(state["best_loss"], "best_loss")
        self.next_look = number(state["next_look"], "next_look", most=self.ledger.budget + self.every)
        self.before = number(state["seconds"], "seconds")
        answered = arrays_like(
            state["answered"], {"keys": Like("uint8", (None, 16)), "losses": Like("float64", (None,), finite=False)}
        )
        self.answered = dict(zip(map(bytes, answered["keys"]), answered["losses"].tolist(), strict=True))
        self.search.load_state_dict(state["search"])
        self.best = self._looked(state["best"], len(self.search.recommend()))
        self._mark()

    def _looked(self, told: dict[str, Any], dim: int) -> Look:
        """The selected reading of a state."""
        names = ("val_loss", "val_accuracy", "evaluations", "train_loss")
        theta = arrays_like(told, {"theta": Like("float32", (dim,))}, besides=names)["theta"]
        return Look(
            theta=theta,
            val_loss=math.inf if told["val_loss"] == math.inf else _loss(told["val_loss"], "val_loss"),
            val_accuracy=number(told["val_accuracy"], "val_accuracy", most=1.0) if self.num_val else math.nan,
            evaluations=number(told["evaluations"], "evaluations", most=self.ledger.budget),
            train_loss=None if told["train_loss"] is None else _loss(told["train_loss"], "train_loss"),
        )


def _loss(value: Any, name: str) -> float:
    """A loss of a state: a number, or NaN where no candidate had one."""
    return math.nan if value != value else number(value, name, least=-math.inf)
