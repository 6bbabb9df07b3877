"""The synthetic run is a run: it improves, and its memory is measured."""

from __future__ import annotations

import json

import numpy as np

from bench import memory

SMALL = ["--images", "300", "--classes", "30", "--width", "16", "--k", "8", "--memory", "16", "--budget", "40"]


def test_a_small_run_measures_its_memory_and_improves(command):
    code, out, _ = command("bench", "memory", *SMALL, "--json")
    found = json.loads(out)
    assert code == 0 and found["best_loss"] < found["loss"] and found["evaluations"] <= 40
    assert 0 < found["before_gb"] <= found["peak_gb"] < 4
    assert found["searching_s"] > 0 and found["answering_s"] > 0


def test_a_peak_above_the_limit_is_the_exit_code(command):
    code, out, _ = command("bench", "memory", *SMALL, "--limit", "0.001")
    assert code == 1 and "peak_gb" in out
    code, _, err = command("bench", "memory", "--images", "3", "--classes", "30")
    assert code == 2 and "--images 3" in err


def test_a_pixel_tells_its_class():
    labels = (0, 7, 300, 70_000)
    colours = [image[0, 0].astype(int) for image in memory.Pixels(labels).read(range(4))]
    assert [int(colour @ (1 << 16, 1 << 8, 1)) for colour in colours] == list(labels)
    pool = memory.pool("5,3")
    assert np.bincount(pool.train.labels).tolist() == [3] * 5 and len(pool.test) == 5
