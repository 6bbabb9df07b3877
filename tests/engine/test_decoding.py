"""Where images are decoded: in the workers. What travels to them are references."""

import os
import pickle

import numpy as np
import pytest
from traced import Traced

from engine.boxes.toy import toy_task
from engine.core import Split
from engine.pool import RayPool, Serial
from engine.problem import ProblemSpec


def spec(folder) -> ProblemSpec:
    task = toy_task(train=40)
    source = Traced(task.train.source, str(folder))
    splits = {"train": Split(source=source, labels=task.train.labels), "val": task.val, "test": task.test}
    return ProblemSpec(box="toy:", classes=task.classes, template=task.template, splits=splits, prompt={"name": "text"})


@pytest.mark.ray
def test_workers_read_images_and_the_driver_none(ray_local, tmp_path):
    problem = spec(tmp_path)
    pool = RayPool(problem, 2, chunk=1)
    try:
        losses = pool.evaluate(np.zeros((4, pool.describe()[1]), np.float32)).losses
    finally:
        pool.close()
    assert np.isfinite(losses).all()
    readers = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert readers and str(os.getpid()) not in readers


def test_a_problem_travels_without_its_images(tmp_path):
    problem = spec(tmp_path)
    images = sum(image.nbytes for image in problem.splits["train"].source.images.read(range(200)))
    assert len(pickle.dumps(problem)) < images / 2
    assert not list(tmp_path.iterdir())
    serial = Serial(problem)
    serial.evaluate(np.zeros((1, serial.describe()[1]), np.float32))
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [str(os.getpid())]
