"""The same bits whatever the number of workers, at the size at which it is promised: defaults, 500 evaluations.

Nothing here limits the threads of this process: that is the engine's part.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from tuning.recipe import make_recipe
from tuning.run import Tuning

METHODS = {
    "sketch": (1, 2, 3),
    "momentum": (2,),
    "cbbt": (2,),
    "craft": (2,),
    "sharpzo": (2,),
    "zip": (2,),
    "nevergrad:CMA": (2,),
    "nevergrad:DiagonalCMA": (2,),
}
"""Every kind of arithmetic that a driver does between answers, and with how many workers it is compared with none."""
APART = {"seconds", "workers", "retries", "duplicates", "bytes"}


def bits(folder, recipe):
    """The hash of the prompt, and history and result without times, retries and worker counts."""
    tuning = Tuning(recipe, folder)
    for _ in tuning:
        pass
    told = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] + [tuning.result]
    return (
        hashlib.sha256((folder / "artifact" / "prompt.safetensors").read_bytes()).hexdigest(),
        [{key: value for key, value in line.items() if key not in APART} for line in told],
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("method", METHODS)
def test_any_number_of_workers_at_the_default_size(tmp_path, ray_local, method):
    alone = bits(tmp_path / "0", make_recipe({"method": method, "budget": 500}))
    for workers in METHODS[method]:
        recipe = make_recipe({"method": method, "budget": 500, "workers": workers})
        assert bits(tmp_path / str(workers), recipe) == alone


@pytest.mark.parametrize("head", ["linear", "gda", "tip"])
@pytest.mark.ray
@pytest.mark.slow
def test_heads_too(tmp_path, ray_local, head):
    settings = {"method": "momentum", "head": head, "budget": 60}
    alone = bits(tmp_path / "0", make_recipe(settings))
    assert bits(tmp_path / "2", make_recipe({**settings, "workers": 2})) == alone


@pytest.mark.parametrize("method", ["momentum", "sketch"])
def test_a_schedule_runs_to_its_end_whatever_the_minibatch(tmp_path, method):
    """A budget is in evaluations and a search counts candidates: of 8 rows of 80, ten for one."""
    recipe = make_recipe({"method": method, "budget": 60, "rows": 8, "shots": 8})
    tuning = Tuning(recipe, tmp_path / "run")
    thetas = [step.state()["search"]["theta"].copy() for step in tuning]
    moved = [float(np.abs(after - before).max()) for before, after in zip(thetas, thetas[1:], strict=False)]
    rounds = len(moved)
    assert rounds > 100 if method == "momentum" else rounds < 150  # sketch: not one probe a round
    assert all(move > 0 for move in moved[: rounds * 8 // 10]) if method == "momentum" else any(moved[rounds // 2 :])
