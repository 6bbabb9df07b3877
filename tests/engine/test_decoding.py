"""Where images are decoded: in the workers, one at a time. What travels to them are references."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from traced import Traced

from engine.boxes.toy import toy_task
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.ray_pool import RayPool
from engine.evaluators.serial import Serial
from engine.task import Split


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
        losses = pool.evaluate(np.zeros((4, pool.describe()[1].dim), np.float32)).losses
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
    serial.evaluate(np.zeros((1, serial.describe()[1].dim), np.float32))
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [str(os.getpid())]


STAGED = """
import sys
from engine.boxes import open_box
from engine.images import Files

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

box = open_box("mini:resnet", classes=("digit one", "digit two"), template="a photo of a {}.")
box.stage(Files(tuple(sys.argv[1:2])))
before = peak()
box.stage(Files(tuple(sys.argv[1:])))
print(peak() - before)
"""


def test_full_size_photos_never_lie_in_memory_together(tmp_path):
    """Twelve of 12 megapixels are 432 MB decoded; after the first, the rest need no room of their own."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.NEAREST).save(tmp_path / "0.jpg", quality=70)
    photo = (tmp_path / "0.jpg").read_bytes()
    paths = [tmp_path / f"{number}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(photo + bytes([number]))  # told apart by their bytes
    environment = {**os.environ, "KEYHOLE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", STAGED, *map(str, paths)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100, f"{done.stdout} MB more for eleven photos more"
