"""Batches of what waits while the worker is busy. An empty queue never waits for company.

Knows nothing of what is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from serve import metrics

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batched(Generic[Result]):
    """Results of items that were in one batch, and how they came to be."""

    results: list[Result]
    queue_s: float
    work_s: float
    batch: int
    """Items of that batch, others' included."""


@dataclass(slots=True, eq=False)
class _Submission(Generic[Item, Result]):
    """Items that came together: whoever submitted them is woken once."""

    items: Sequence[Item]
    done: asyncio.Future
    taken: int = 0
    parts: list[Batched[Result]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[Item, Result]):
    """Gives one thread batches of items, in the order in which they came.

    Args:
        work: Takes a batch, returns a result for each. It must not fail for one item's sake: an exception fails all.
        most: Items of a batch.
        executor: Where `work` runs, one batch at a time.
    """

    def __init__(self, work: Callable[[list[Item]], Sequence[Result]], *, most: int, executor: Executor) -> None:
        self._work, self._most, self._executor = work, most, executor
        self._queue: deque[_Submission[Item, Result]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Items that wait."""
        return sum(len(one.items) - one.taken for one in self._queue)

    async def submit(self, items: Sequence[Item]) -> list[Batched[Result]]:
        """Results in their order, of one batch after the other.

        Items of whoever is cancelled while they wait are left out of batches.
        """
        if not items:
            return []
        loop = asyncio.get_running_loop()
        own: _Submission[Item, Result] = _Submission(items, loop.create_future())
        self._queue.append(own)
        if self._running is None:
            self._running = loop.create_task(self._run())
        return await own.done

    async def _run(self) -> None:
        """Work until nothing waits."""
        try:
            while self._queue:
                await asyncio.sleep(0)  # requests that arrived together
                if taken := self._next():
                    await self._batch(taken)
        finally:
            self._running = None

    def _next(self) -> list[tuple[_Submission[Item, Result], Sequence[Item]]]:
        """Those whose items make the next batch, with these items."""
        taken, room = [], self._most
        while self._queue and room:
            first = self._queue[0]
            if first.done.done():  # whoever submitted it is gone, or an earlier batch failed
                self._queue.popleft()
                continue
            some = first.items[first.taken : first.taken + room]
            first.taken += len(some)
            room -= len(some)
            taken.append((first, some))
            if first.taken == len(first.items):
                self._queue.popleft()
        return taken

    async def _batch(self, taken: list[tuple[_Submission[Item, Result], Sequence[Item]]]) -> None:
        start, items = time.perf_counter(), [item for _, some in taken for item in some]
        metrics.BATCH.record(len(items))
        metrics.QUEUE.record(len(self))
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._work, items)
        except Exception as error:
            for own, _ in taken:
                if not own.done.done():
                    own.done.set_exception(error)
            return
        work_s, left = time.perf_counter() - start, iter(results)
        for own, some in taken:
            part = list(islice(left, len(some)))
            own.parts.append(Batched(results=part, queue_s=start - own.since, work_s=work_s, batch=len(items)))
            if sum(len(one.results) for one in own.parts) == len(own.items) and not own.done.done():
                own.done.set_result(own.parts)
