"""Batches form of what waits, and of nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serve.batching import Batcher


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_what_waits_while_it_works_goes_together(executor):
    batches, gate = [], threading.Event()

    def work(items):
        batches.append(list(items))
        gate.wait(5)
        return [item * 2 for item in items]

    async def main():
        batcher = Batcher(work, most=4, executor=executor)
        first = asyncio.create_task(batcher.submit([0]))
        while not batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.submit([item])) for item in range(1, 8)]
        await asyncio.sleep(0.01)
        others[2].cancel()  # whoever hangs up is left out
        gate.set()
        done = await asyncio.gather(first, *others, return_exceptions=True)
        return [one[0].results[0] if not isinstance(one, BaseException) else None for one in done]

    assert asyncio.run(main()) == [0, 2, 4, None, 8, 10, 12, 14]
    assert batches == [[0], [1, 2, 4, 5], [6, 7]]


def test_an_empty_queue_does_not_wait(executor):
    async def main():
        batcher = Batcher(lambda items: items, most=32, executor=executor)
        await batcher.submit([0])
        start = time.perf_counter()
        for item in range(200):
            (done,) = await batcher.submit([item])
            assert (done.results, done.batch) == ([item], 1)
        return (time.perf_counter() - start) / 200

    assert asyncio.run(main()) < 0.01


def test_a_failure_is_told_to_all_of_its_batch_and_ends_there(executor):
    def work(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    async def main():
        batcher = Batcher(work, most=8, executor=executor)
        both = await asyncio.gather(batcher.submit(["bad"]), batcher.submit(["good"]), return_exceptions=True)
        return both, (await batcher.submit(["good"]))[0].results

    both, after = asyncio.run(main())
    assert [type(one) for one in both] == [ValueError, ValueError] and after == ["good"]


def test_items_that_came_together_fill_batches_and_wake_their_submitter_once(executor):
    """Seven items in batches of three; the last batch is shared with whoever came next."""

    async def main():
        batcher = Batcher(lambda items: [-item for item in items], most=3, executor=executor)
        return await asyncio.gather(batcher.submit(range(7)), batcher.submit([7, 8, 9]), batcher.submit([]))

    first, second, nothing = asyncio.run(main())
    assert [part.results for part in first] == [[0, -1, -2], [-3, -4, -5], [-6]]
    assert [part.results for part in second] == [[-7, -8], [-9]] and nothing == []
    assert [part.batch for part in first + second] == [3, 3, 3, 3, 1]
    assert first[0].queue_s < first[1].queue_s < first[2].queue_s
