"""Tasks: sizes, balance, purity, and no image in two splits."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from engine.errors import TaskError
from miniature import tasks


@pytest.mark.parametrize("name", tasks.TASKS)
def test_sizes_labels_and_sources(name):
    task = tasks.load(name)
    assert task.uri == f"mini:{name}"
    assert task.template.count("{}") == 1
    assert len(set(task.classes)) == len(task.classes)
    handwritten = name in ("digits", "biased")
    assert len(task.train) == len(task.classes) * (40 if handwritten else 256)
    assert len(task.test) == (1397 if handwritten else 10_000)
    assert len(task.val) == len(task.val.source) == 0
    for split in (task.train, task.val, task.test):
        assert split.labels.dtype == np.int64 and len(split.source) == len(split.labels)
    assert np.ptp(np.bincount(task.train.labels, minlength=len(task.classes))) == 0
    counts = np.bincount(task.test.labels, minlength=len(task.classes))
    assert np.ptp(counts) <= (14 if handwritten else 1)

    rows = [3, 0, len(task.test) - 1]
    images = task.test.source.read(rows)
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    source = pickle.loads(pickle.dumps(task.test.source))
    assert len(pickle.dumps(source)) < 20_000
    tasks._block.cache_clear()
    assert all(np.array_equal(a, b) for a, b in zip(source.read(rows), images, strict=True))
    assert np.array_equal(source.read([0])[0], images[1])


@pytest.mark.parametrize("name", ["digits", "bgcol"])
def test_pool_and_test_share_no_image(name):
    task = tasks.load(name)
    pool = {image.tobytes() for image in task.train.source.read(range(len(task.train)))}
    test = {image.tobytes() for image in task.test.source.read(range(1000))}
    assert not pool & test


def test_control_is_marked():
    assert [name for name in tasks.TASKS if tasks.load(name).control] == ["texture", "count"]


def test_biased_misleads():
    task = tasks.load("biased")
    papers = tasks._papers()
    pool = np.array(task.train.source.rows)
    rest = np.array(task.test.source.rows)
    assert 0.75 < (papers[pool] == task.train.labels).mean() < 0.9
    assert (papers[rest] == task.test.labels).mean() < 0.05
    corner = task.train.source.read([0])[0][0, 0]
    assert np.array_equal(corner, tasks._PAPERS[papers[pool[0]]])


def test_a_row_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        tasks.load("bgcol").test.source.read([10_000])


def test_unknown_name_is_refused_with_a_hint():
    with pytest.raises(TaskError, match="did you mean 'texture'"):
        tasks.load("textures")


def test_names_are_listed_without_torch():
    code = (
        "import sys, miniature.tasks as t; assert len(t.TASKS) == 8; assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
