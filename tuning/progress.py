"""A run's progress on stderr: a bar on a terminal, plain lines elsewhere; phases before and after."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine import phases

if TYPE_CHECKING:
    from engine.tuning_loop import Step

WIDE, NARROW = 100, 60
"""Columns from which the bar shows all numbers, and below which it shows only the count and the time left."""
FORMS = {
    WIDE: "{l_bar}{bar}| {n:.0f}/{total:.0f} evaluations [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    NARROW: "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} evaluations [{remaining} left{postfix}]",
    0: "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{remaining} left]",
}
SAID_AFTER_S = 1.0
"""Phases shorter than this get no plain line."""
EVERY_S = 3.0
"""Least seconds between two plain lines about phases."""
REDRAW_S = 0.1
"""Least seconds between two updates of a phase on a terminal."""


class Progress(logging.Handler):
    """A run's progress on stderr, for the length of a `with` block.

    Args:
        budget: Evaluations of the whole run; unused where there are only phases.
    """

    def __init__(self, budget: float = 1.0) -> None:
        super().__init__(logging.INFO)
        self._budget = budget
        self._live = sys.stderr.isatty()
        self._bar: Any = None
        self._phase: phases.Phase | None = None
        self._timer: threading.Timer | None = None
        self._said = 0.0
        self._before = (phases.logger.level, phases.logger.propagate)

    def __enter__(self) -> Progress:
        phases.logger.addHandler(self)
        phases.logger.setLevel(logging.INFO)
        phases.logger.propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        phases.logger.removeHandler(self)
        phases.logger.setLevel(self._before[0])
        phases.logger.propagate = self._before[1]
        self._end_phase()
        self._end_bar()

    def step(self, step: Step) -> None:
        """Show a step."""
        self._end_phase()
        if self._live:
            self._advance(step)
        elif step.look is not None:
            rate = step.evaluations / max(step.seconds, 1e-9)
            left = (self._budget - step.evaluations) / max(rate, 1e-9)
            _write(
                f"evaluations {step.evaluations:7.1f} of {self._budget:g}  loss {step.loss:.4f}  "
                f"best {step.best_loss:.4f}  val loss {step.look.val_loss:.4f}  "
                f"val accuracy {step.look.val_accuracy:.4f}  {rate:.0f}/s  {left:.0f} s left\n"
            )

    def emit(self, record: logging.LogRecord) -> None:
        """Show a phase: at once on a terminal; elsewhere only if it lasts, and not too often."""
        phase: phases.Phase = record.phase  # type: ignore[attr-defined]
        if phase.ended:
            self._end_phase()
            return
        new = self._phase is None or self._phase.what != phase.what
        if new:
            self._end_phase()
        self._phase = phase
        now = time.monotonic()
        if not self._live:
            if self._timer is None:
                self._timer = threading.Timer(max(SAID_AFTER_S, self._said + EVERY_S - now), self._say)
                self._timer.daemon = True
                self._timer.start()
        elif new or now - self._said >= REDRAW_S:
            self._end_bar()
            self._said = now
            _write(f"\r\x1b[K{phase}"[: _columns() + 3])

    def _say(self) -> None:
        phase, self._timer, self._said = self._phase, None, time.monotonic()
        if phase is not None:
            _write(f"{phase}\n")

    def _end_phase(self) -> None:
        if self._phase is not None and self._live:
            _write("\r\x1b[K")
        if self._timer is not None:
            self._timer.cancel()
        self._phase = self._timer = None

    def _advance(self, step: Step) -> None:
        from tqdm import tqdm

        columns = _columns()
        if self._bar is None:
            self._bar = tqdm(total=self._budget, unit="ev", file=sys.stderr, ncols=columns, bar_format=FORMS[0])
        self._bar.ncols = columns
        self._bar.bar_format = next(form for least, form in FORMS.items() if columns >= least)
        told = {"loss": f"{step.loss:.4f}", "best": f"{step.best_loss:.4f}"} if columns >= WIDE else {}
        self._bar.set_postfix(**told, val=f"{step.best.val_accuracy:.3f}", refresh=False)
        self._bar.update(step.evaluations - self._bar.n)

    def _end_bar(self) -> None:
        """End the bar, which stays visible on its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
