"""Threads are held for the length of a call and then given back."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from engine import search
from engine.evaluators.serial import Serial
from engine.heads import fit
from engine.threads import limited, limited_steps
from tuning.recipe import make_recipe
from tuning.run import Tuning, problem_of, task_of


def now():
    """Every thread count that there is; libraries may be loaded meanwhile."""
    return {pool["num_threads"] for pool in threadpool_info()} | {torch.get_num_threads()}


def test_blas_openmp_and_torch_are_held_and_given_back():
    with threadpool_limits(2):
        torch.set_num_threads(2)
        before = now()
        with limited(1):
            assert now() == {1}
        assert now() == before
        with limited(None):
            assert now() == before


def test_the_consumer_of_steps_has_its_threads():
    inside = []

    def steps():
        for _ in range(2):
            inside.append(now())
            yield None

    with threadpool_limits(2):
        torch.set_num_threads(2)
        outside = [now() for _ in limited_steps(steps(), 1)]
        assert inside == [{1}, {1}] and all(each == now() for each in outside)


def test_a_run_a_box_and_a_head_leave_the_process_its_threads(tmp_path):
    recipe = make_recipe({"budget": 12, "method": "momentum", "shots": 1})
    with threadpool_limits(2):
        torch.set_num_threads(2)
        before = now()
        for _ in Tuning(recipe, tmp_path / "run"):
            assert now() == before
        serial = Serial(problem_of(recipe, task_of(recipe), search.make("momentum")))
        serial.evaluate(np.zeros((1, serial.describe()[1].dim), np.float32))
        features, labels = np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1])
        fit("linear", (features, labels), (features, labels))
        assert now() == before
