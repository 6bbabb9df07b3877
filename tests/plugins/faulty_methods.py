"""Search methods that fail on purpose, named as `faulty_methods:NAME` so that Ray workers can import them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass

from engine.protocols import Needs
from engine.search.momentum import Momentum


@dataclass(frozen=True)
class Dies:
    """Takes its process with it."""

    needs = Needs()

    def start(self, space, candidates, seed):
        os._exit(1)


@dataclass(frozen=True)
class Raises:
    """Has a bug."""

    needs = Needs()

    def start(self, space, candidates, seed):
        raise ZeroDivisionError("on purpose")


@dataclass(frozen=True)
class FullDisk:
    """Meets a disk without room."""

    needs = Needs()

    def start(self, space, candidates, seed):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Chatty:
    """`momentum`, which writes to stdout in every way there is, also where a box's worker would."""

    needs = Needs()

    def start(self, space, candidates, seed):
        print("from Python")
        print("from Python, where others look for it", file=sys.__stdout__, flush=True)
        os.write(1, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)
        return Momentum().start(space, candidates, seed)
