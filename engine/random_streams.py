"""Random numbers: every draw is a function of (seed, step, purpose) and of nothing else.

So a resumed run, or one with other workers, draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for. The values are part of the file format: never reuse one."""

    FEW_SHOT = 1
    ROWS = 2
    PROBES = 3
    PROJECTION = 4
    OPTIMIZER = 5
    WEIGHTS = 6
    RENDER = 7
    SPLIT = 8
    HEAD = 9
    DEGRADE = 10
    TEST = 11
    CANARY = 12


def rng(seed: int, step: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one purpose at one step of one run."""
    return np.random.default_rng((seed, step, int(purpose)))
