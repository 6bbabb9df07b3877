"""Prompts that misbehave on purpose, named as `faults:NAME` so that Ray workers can import them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from engine.errors import RecipeError
from engine.prompts.text import text_context

SIGNAL = 777.0
"""A candidate whose first entry this is meets the fault."""


@dataclass(frozen=True)
class Faulty:
    inner: object
    kind: str
    folder: str

    @property
    def space(self):
        return self.inner.space

    def decode(self, thetas):
        if (thetas[:, 0] == SIGNAL).any():
            marks = len(list(Path(self.folder).iterdir()))
            Path(self.folder, f"{time.time_ns()}-{os.getpid()}").touch()
            if self.kind == "dies once" and marks == 0 or self.kind == "dies always":
                os._exit(1)
            if self.kind == "hangs once" and marks == 0:
                time.sleep(120)
            if self.kind == "user error":
                raise RecipeError("this is the user's own mistake")
            if self.kind == "bug":
                raise ZeroDivisionError("a bug")
            thetas = thetas.copy()
            thetas[thetas[:, 0] == SIGNAL, 0] = 0.5
        return self.inner.decode(thetas)


def _make(kind):
    def make(spec, *, tokens, subspace, seed):
        return Faulty(text_context(spec, tokens=tokens, subspace="full", seed=seed), kind, subspace)

    return make


dies_once = _make("dies once")
dies_always = _make("dies always")
hangs_once = _make("hangs once")
user_error = _make("user error")
bug = _make("bug")
