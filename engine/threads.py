"""How many threads arithmetic may use during a call.

The order of a sum, and with it the last bits of a product, depends on the number of threads. Code that promises the
same bits runs inside `limited`; the caller's process gets its threads back when the call returns.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")


@lru_cache(maxsize=1)
def _pools(num_modules: int) -> ThreadpoolController:
    """The thread pools of this process. Searching takes milliseconds, and only an import can have loaded another."""
    return ThreadpoolController()


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limit BLAS, OpenMP and torch to this many threads; None leaves them alone.

    A library that is first loaded inside the block is not limited: load it before.
    """
    if threads is None:
        yield
        return
    torch: Any = sys.modules.get("torch")  # its matrix products have a thread count of their own
    before = torch.get_num_threads() if torch else 0
    with _pools(len(sys.modules)).limit(limits=threads):
        if torch:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def limited_steps(steps: Generator[Item, None, None], threads: int | None) -> Iterator[Item]:
    """Iterate over `steps` with the limit in force while it runs, and not while its consumer does."""
    try:
        while True:
            with limited(threads):
                try:
                    item = next(steps)
                except StopIteration:
                    return
            yield item
    finally:
        steps.close()
