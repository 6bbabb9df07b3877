"""Evaluators that a process keeps open between trials, so that a box is opened and images are encoded once.

Trials that differ only in method and budget share all of it; those of another seed share the test split, which is
the data's own and the largest. What is shared is booked in each trial's ledger as if it were its own.
Knows nothing of comparisons and of Ray.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from engine.core import Array, Evaluator, Method, Reply, Task
from engine.pool import Serial
from tuning.recipe import Recipe, make_recipe
from tuning.resolve import prompt_of
from tuning.run import problem_of
from tuning.tasks import few_shot, halve, load_pool


class Shared:
    """An evaluator of two: the few-shot splits are this sample's, the test split is that of all samples."""

    workers = 0

    def __init__(self, own: Serial, common: Serial) -> None:
        self.own, self.common = own, common

    def evaluate(self, thetas: Array, rows: Array | None = None, *, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split (None: all)."""
        return self._of(split).evaluate(thetas, rows, split=split, table=table)

    def call(self, name: str, *args: Any) -> Any:
        """Any other question to the problem."""
        return self._of("test" if any(isinstance(a, str) and a == "test" for a in args) else "train").call(name, *args)

    def fingerprint(self) -> dict[str, Any]:
        return self.own.fingerprint()

    def close(self) -> None:
        """Nothing to end: it stays open for the next trial."""

    def _of(self, split: str) -> Serial:
        return self.common if split == "test" else self.own


def opened(recipe: Recipe, method: Method | None) -> tuple[Task, Evaluator]:
    """The recipe's task and an evaluator for it, from the last few of this process where they serve."""
    prompt = prompt_of(recipe, method)
    seed = recipe.seed if recipe.data_seed is None else recipe.data_seed
    # What a problem does not depend on is set to one value, so that it makes no difference to the key.
    key = replace(
        recipe,
        method="zero-shot",
        options={},
        head=None,
        budget=1.0,
        prompt=prompt,
        seed=recipe.seed if prompt.subspace != "full" else 0,
        data_seed=seed,
    )
    task = _task(json.dumps(key.as_dict()))
    own = _serial(json.dumps(key.as_dict()))
    common = _common(json.dumps(replace(key, shots=1, data_seed=0).as_dict()))
    return task, Shared(own, common)


@lru_cache(maxsize=4)
def _pool(uri: str) -> Task:
    return load_pool(uri)


@lru_cache(maxsize=4)
def _task(key: str) -> Task:
    recipe = make_recipe(json.loads(key))
    assert recipe.data_seed is not None
    return few_shot(halve(_pool(recipe.task), recipe.half), shots=recipe.shots, seed=recipe.data_seed)


@lru_cache(maxsize=2)
def _serial(key: str) -> Serial:
    recipe = make_recipe(json.loads(key))
    return Serial(problem_of(recipe, _task(key)), chunk=recipe.pool.chunk)


@lru_cache(maxsize=2)
def _common(key: str) -> Serial:
    recipe = make_recipe(json.loads(key))
    task = halve(_pool(recipe.task), recipe.half)
    return Serial(problem_of(recipe, replace(task, train=task.test, val=task.test)), chunk=recipe.pool.chunk)
