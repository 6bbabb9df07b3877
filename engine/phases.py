"""What a run is doing outside of its steps: starting Ray, opening a box, encoding images.

A phase is reported as INFO records of the logger `engine.phases`: the command line or a notebook adds a handler, and
without one it costs nothing. Each record has the attribute `phase`, a `Phase`.
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
    """The progress of a phase."""

    what: str
    """What is being done, as in `encoding test images`."""
    done: int = 0
    total: int = 0
    """0 where it is not known."""
    seconds: float = 0.0
    """Time since it began."""
    ended: bool = False

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate; None where that is not known."""
        return self.seconds * (self.total - self.done) / self.done if self.done and self.total else None

    def __str__(self) -> str:
        far = f": {self.done:,} of {self.total:,}" if self.total else " ..."
        return self.what + far + ("" if self.left is None else f", {self.left:.0f} s left")


_now: ContextVar[tuple[Phase, float] | None] = ContextVar("phase", default=None)
_before: ContextVar[int] = ContextVar("before", default=0)


@contextmanager
def phase(what: str, total: int = 0) -> Iterator[None]:
    """Report a phase for the length of the block, in place of an enclosing one. Also a decorator.

    Args:
        what: In words: `encoding test images`.
        total: How many steps it has; 0 where that is not known.
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
    """Report how many of the phase's total are done; outside of a phase, do nothing."""
    _tell(done=_before.get() + done)


@contextmanager
def after(done: int) -> Iterator[None]:
    """Within the block, which is a part of the phase, add `done` to what `advance` reports."""
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
