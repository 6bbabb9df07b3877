"""What a run would spend, known before anything is sent.

Knows nothing of how methods search and of run folders.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from engine.boxes.feature_cache import VARIABLE
from engine.evaluators.serial import Serial
from engine.phases import phase
from engine.task import Split, Task
from engine.threads import limited
from engine.tuning_loop import SearchMethod
from tuning import budget
from tuning.recipe import Recipe
from tuning.resolve import method_of
from tuning.run import problem_of, session_of, task_of

TIMED = 16
"""Images that a local box is timed on."""


def plan(recipe: Recipe) -> dict[str, Any]:
    """What a run would spend. Sends nothing; a local box is timed on this machine, on a few images.

    Seconds are those of images that no cache holds yet. Raises as a run does before its first query.
    """
    task = task_of(recipe)
    method = method_of(recipe)
    evaluations = method.cost(len(task.train), len(task.val), float(recipe.budget))
    local = recipe.box.split(":", 1)[0] not in ("http", "https", "chat")
    seconds: dict[str, float | None] = dict.fromkeys(("encoding_seconds", "seconds", "test_seconds"))
    note = None
    if local:
        few = {"train": _few(task.train), "val": _few(task.val), "test": _few(task.test)}
        serial = Serial(replace(problem_of(recipe, task, method), splits=few), chunk=recipe.pool.chunk)
        with phase("timing the box on a few images"), _uncached(), limited(recipe.pool.threads):
            seconds = _seconds(serial, task, evaluations, max(1, recipe.workers))
        if isinstance(method, SearchMethod):
            note = budget.word(session_of(recipe, task, serial, method), method, recipe.method)
    return {
        "task": recipe.task,
        "box": recipe.box,
        "method": recipe.method,
        "training_images": len(task.train),
        "validation_images": len(task.val),
        "test_images": len(task.test),
        "test_images_of": task.test_of or len(task.test),
        "evaluations": evaluations,
        "pairs": int(evaluations * len(task.train)),
        "test_pairs": 2 * len(task.test),
        **seconds,
        "cost": 0.0 if local else None,
        "images_go_to": "this cluster only" if local else recipe.box,
        "note": note,
    }


def _seconds(serial: Serial, task: Task, evaluations: float, workers: int) -> dict[str, float | None]:
    """Expected seconds: to encode the training and validation images, to search, and of the final test read."""
    thetas = np.zeros((serial.chunk, serial.describe()[1].dim), np.float32)
    problem = serial.problem
    problem.stage("val")  # first calls are not part of the rate
    image = _timed(lambda: problem.stage("train")) / len(problem.spec.splits["train"])
    serial.evaluate(thetas)
    candidate = _timed(lambda: serial.evaluate(thetas), 3) / len(thetas)
    moving = "image" in problem.space.moves
    # Where a prompt moves images, each image is encoded again; else the text tower takes nearly all of the time.
    each = candidate / len(problem.spec.splits["train"]) if moving else 0.0
    whole = each * len(task.train) if moving else candidate
    return {
        "encoding_seconds": round(image * (len(task.train) + len(task.val)), 1),  # each worker encodes for itself
        "seconds": round(whole * evaluations / workers, 1),
        "test_seconds": round(image * len(task.test) + (each * len(task.test) if moving else 2 * candidate), 1),
    }


def _few(split: Split) -> Split:
    """Evenly spaced images of a split, so that they are of several classes and sizes."""
    return split.subset(np.unique(np.linspace(0, len(split) - 1, min(TIMED, len(split))).astype(int)))


def _timed(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of one go."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


@contextmanager
def _uncached() -> Iterator[None]:
    """Without features from the disk, which would say nothing of how long encoding takes."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
