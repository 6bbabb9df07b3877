"""What a run would spend, known before anything is sent.

Knows nothing of how methods search and of run folders.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from engine import search
from engine.pool import Serial
from tuning import queryless
from tuning.recipe import Recipe
from tuning.run import problem_of, task_of


def plan(recipe: Recipe) -> dict[str, Any]:
    """What a run would spend. Sends nothing; a local box is timed on this machine's own hardware."""
    task = task_of(recipe)
    method = None
    if queryless.is_queryless(recipe.method):
        queryless.check(recipe)
        evaluations = queryless.cost(task, recipe)
    else:
        method = search.make(recipe.method, recipe.options)
        evaluations = float(recipe.budget)
    problem = problem_of(recipe, task, method)
    local = recipe.box.split(":", 1)[0] not in ("http", "https", "chat")
    seconds = None
    if local:
        serial = Serial(problem, chunk=recipe.pool.chunk)
        thetas = np.zeros((recipe.pool.chunk, serial.describe()[1]), np.float32)
        serial.evaluate(thetas)  # staging and first calls are not part of the rate
        started = time.perf_counter()
        for _ in range(3):
            serial.evaluate(thetas)
        each = (time.perf_counter() - started) / (3 * len(thetas))
        seconds = round(each * evaluations / max(1, recipe.workers), 1)
    return {
        "task": recipe.task,
        "box": recipe.box,
        "method": recipe.method,
        "training_images": len(task.train),
        "validation_images": len(task.val),
        "evaluations": evaluations,
        "pairs": int(evaluations * len(task.train)),
        "test_pairs": 2 * len(task.test),
        "seconds": seconds,
        "cost": 0.0 if local else None,
        "images_go_to": "this cluster only" if local else recipe.box,
    }
