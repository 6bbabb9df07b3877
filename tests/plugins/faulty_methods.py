"""Search methods that fail on purpose, named as `faulty_methods:NAME` so that Ray workers can import them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass

from engine.search.momentum import Momentum
from engine.tuning_loop import SearchMethod


@dataclass(frozen=True)
class Dies(SearchMethod):
    """Takes its process with it."""

    def start(self, space, candidates, seed):
        os._exit(1)


@dataclass(frozen=True)
class Raises(SearchMethod):
    """Has a bug."""

    def start(self, space, candidates, seed):
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class FullDisk(SearchMethod):
    """Meets a disk without room."""

    def start(self, space, candidates, seed):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Chatty(SearchMethod):
    """`momentum`, which writes to stdout in every way there is, also where a box's worker would."""

    def start(self, space, candidates, seed):
        print("from Python")
        print("from Python, where others look for it", file=sys.__stdout__, flush=True)
        os.write(1, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)
        return Momentum().start(space, candidates, seed)
