"""Evaluators that a process keeps open between trials, so that a box is opened and images are encoded once.

Trials that differ only in method and budget share all of it; those of another seed or prompt share the box and the
test split, which is the data's own and the largest. What is shared is booked in each trial's ledger as if it were its
own.
Knows nothing of comparisons and of Ray.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

from engine.boxes import open_box
from engine.evaluators.problem import OpenBox
from engine.evaluators.serial import Serial
from engine.task import Task
from tuning.data.load_task import few_shot, halve, load_pool, looked_over, part_of_test
from tuning.recipe import Recipe, make_recipe
from tuning.resolve import method_of, prompt_of
from tuning.run import problem_of


def opened(recipe: Recipe) -> tuple[Task, Serial]:
    """The recipe's task and an evaluator for it, from the last few of this process where they serve."""
    prompt = prompt_of(recipe, method_of(recipe))
    # What a problem does not depend on is set to one value, so that it makes no difference to the key.
    key = replace(
        recipe,
        method="zero-shot",
        options={},
        head=None,
        budget=1.0,
        prompt=prompt,
        seed=recipe.seed if prompt.subspace != "full" else 0,
        data_seed=recipe.sample_seed,
    )
    text = json.dumps(key.as_dict())
    return _task(text), _serial(text)


@lru_cache(maxsize=4)
def _pool(uri: str) -> Task:
    return load_pool(uri)


@lru_cache(maxsize=4)
def _task(key: str) -> Task:
    recipe = make_recipe(json.loads(key))
    assert recipe.data_seed is not None
    task = few_shot(halve(_pool(recipe.task), recipe.half), shots=recipe.shots, seed=recipe.data_seed)
    return looked_over(part_of_test(task, recipe.test_images, recipe.data_seed))


@lru_cache(maxsize=2)
def _serial(key: str) -> Serial:
    recipe = make_recipe(json.loads(key))
    assert recipe.data_seed is not None
    drawn = 0 if recipe.test_images is None else recipe.data_seed
    box = _box(recipe.task, recipe.half, recipe.test_images, drawn, recipe.box, recipe.device, recipe.pool.threads)
    return Serial(problem_of(recipe, _task(key)), chunk=recipe.pool.chunk, common=box)


@lru_cache(maxsize=2)
def _box(
    task: str, half: str, test_images: int | None, seed: int, box: str, device: str, threads: int | None
) -> OpenBox:
    """A box for a task's classes: few-shot samples and prompts share it, and the test split that it has staged.

    `seed` is that of the part that `test_images` draws, 0 for the whole split.
    """
    whole = halve(_pool(task), half)
    return OpenBox(open_box(box, classes=whole.classes, template=whole.template, device=device, threads=threads))
