"""Search methods that fail on purpose, named as `faulty_methods:NAME` so that Ray workers can import them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from engine.core import Needs


@dataclass(frozen=True)
class Dies:
    """Takes its process with it."""

    needs = Needs()

    def start(self, dim, budget, seed):
        os._exit(1)


@dataclass(frozen=True)
class Raises:
    """Has a bug."""

    needs = Needs()

    def start(self, dim, budget, seed):
        raise ZeroDivisionError("on purpose")
