"""What a run is doing where no step tells it: starting Ray, opening a box, encoding images.

A phase is said as log records of the logger `engine.phases`, at level INFO, so that whoever wants to know (the command
line, a notebook) adds a handler, and nobody else pays. Each record has the attribute `phase`, a `Phase`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """How far a phase is."""

    what: str
    """In words: `encoding test images`."""
    done: int = 0
    total: int = 0
    """Of how many; 0: not known."""
    seconds: float = 0.0
    """Since it began."""
    ended: bool = False

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate, where it is known."""
        return self.seconds * (self.total - self.done) / self.done if self.done and self.total else None

    def __str__(self) -> str:
        far = f": {self.done:,} of {self.total:,}" if self.total else " ..."
        return self.what + far + ("" if self.left is None else f", {self.left:.0f} s left")


_now: ContextVar[tuple[Phase, float] | None] = ContextVar("phase", default=None)
_before: ContextVar[int] = ContextVar("before", default=0)


@contextmanager
def phase(what: str, total: int = 0) -> Iterator[None]:
    """Say that this is being done, and when it has ended. Inside another one, it takes its place meanwhile.

    Also a decorator of a function that is such a phase.
    """
    token, counted = _now.set((Phase(what=what, total=total), time.monotonic())), _before.set(0)
    advance(0)
    try:
        yield
    finally:
        _tell(ended=True)
        _now.reset(token)
        _before.reset(counted)
        _tell()


def advance(done: int) -> None:
    """Say how many of the phase's total are done; nothing outside of a phase."""
    _tell(done=_before.get() + done)


@contextmanager
def after(done: int) -> Iterator[None]:
    """Count what the block does as more than so many that were done before: it is a part of the phase."""
    token = _before.set(_before.get() + done)
    try:
        yield
    finally:
        _before.reset(token)


def _tell(**changes: int | bool) -> None:
    now = _now.get()
    if now is None:
        return
    begun, started = now
    told = replace(begun, seconds=time.monotonic() - started, **changes)  # type: ignore[arg-type]
    logger.info("%s", told, extra={"phase": told})
