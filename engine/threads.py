"""How many threads arithmetic may use while a call lasts.

The order of a sum depends on the number of threads, and with it the last bits of a product. Whoever promises the same
bits computes inside `limited`: the caller's own process has its threads back as soon as the call returns.
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
    """The thread pools of this process. A look takes milliseconds; only an import can have loaded another."""
    return ThreadpoolController()


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Hold BLAS, OpenMP and torch to so many threads; None leaves them alone.

    A library that is first loaded inside is not held: load it before.
    """
    if threads is None:
        yield
        return
    torch: Any = sys.modules.get("torch")  # its products have thread counts of their own, which are no OpenMP pool's
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
    """Iterate with the limit held while `steps` runs, and not while its consumer does."""
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
