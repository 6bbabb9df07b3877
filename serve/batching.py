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
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batched(Generic[Result]):
    """A result, and how it came to be."""

    result: Result
    queue_s: float
    work_s: float
    batch: int
    """Items of its batch."""


@dataclass(slots=True, eq=False)
class _Submission(Generic[Result]):
    """Items that came together: whoever submitted them is woken once."""

    missing: int
    done: asyncio.Future
    results: list[Batched[Result] | None]
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
        self._queue: deque[tuple[Item, int, _Submission[Result]]] = deque()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._queue)

    async def submit(self, items: Sequence[Item]) -> list[Batched[Result]]:
        """Results in their order. Items of whoever is cancelled while they wait are left out of batches."""
        if not items:
            return []
        loop = asyncio.get_running_loop()
        own: _Submission[Result] = _Submission(len(items), loop.create_future(), [None] * len(items))
        self._queue.extend((item, place, own) for place, item in enumerate(items))
        if self._running is None:
            self._running = loop.create_task(self._run())
        return await own.done

    async def _run(self) -> None:
        """Work until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._queue:
                await asyncio.sleep(0)  # requests that arrived together
                taken: list[tuple[Item, int, _Submission[Result]]] = []
                while self._queue and len(taken) < self._most:
                    waiting = self._queue.popleft()
                    if not waiting[2].done.done():
                        taken.append(waiting)
                if taken:
                    await self._batch(loop, taken)
        finally:
            self._running = None

    async def _batch(
        self, loop: asyncio.AbstractEventLoop, taken: list[tuple[Item, int, _Submission[Result]]]
    ) -> None:
        start = time.perf_counter()
        try:
            results = await loop.run_in_executor(self._executor, self._work, [item for item, _, _ in taken])
        except Exception as error:
            for _, _, own in taken:
                if not own.done.done():
                    own.done.set_exception(error)
            return
        work_s = time.perf_counter() - start
        for (_, place, own), result in zip(taken, results, strict=True):
            own.results[place] = Batched(result=result, queue_s=start - own.since, work_s=work_s, batch=len(taken))
            own.missing -= 1
            if not own.missing and not own.done.done():
                own.done.set_result(own.results)
