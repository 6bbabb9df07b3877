"""Candidates are evaluated in this process: no Ray needed."""

from __future__ import annotations

from typing import Any

from engine.evaluators.problem import OpenBox, Problem, ProblemSpec, chunks_of, join
from engine.protocols import Array, BlackBox, BoxSpec, Reply
from engine.search_space import Space
from engine.threads import limited


class Serial:
    """The evaluator of one process: no Ray needed.

    Args:
        spec: the problem.
        chunk: candidates evaluated together; part of what "the same bits" means.
        common: the box where it is open already.
    """

    workers = 0

    def __init__(self, spec: ProblemSpec, *, chunk: int = 2, common: OpenBox | None = None) -> None:
        self.chunk = chunk
        self.spec, self.threads = spec, spec.threads
        self.problem = Problem(spec, common)
        self.box: BlackBox | None = self.problem.box

    def describe(self) -> tuple[BoxSpec, Space]:
        """The box's spec, and the space of the prompt."""
        return self.problem.describe()

    def stage(self, split: str) -> None:
        """Encode a split's images ahead of their first use."""
        with limited(self.threads):
            self.problem.stage(split)

    def evaluate(self, thetas: Array, rows: Array | None = None, *, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split (None: all)."""
        with limited(self.threads):
            return join([self.problem.evaluate(part, rows, split, table) for part in chunks_of(thetas, self.chunk)])

    def read(self, theta: Array | None, split: str, *, whole: bool) -> Reply:
        """The answer for one candidate, or for the template itself (None), on a whole split."""
        with limited(self.threads):
            return self.problem.read(theta, split, whole)

    def decode(self, theta: Array) -> dict[str, Array]:
        """The prompt of one candidate, as an artifact keeps it."""
        with limited(self.threads):
            return self.problem.decode(theta)

    def fingerprint(self) -> dict[str, Any]:
        """Device, builds and the bits of a canary."""
        with limited(self.threads):
            return self.problem.fingerprint()

    def close(self) -> None:
        """Nothing to end."""
