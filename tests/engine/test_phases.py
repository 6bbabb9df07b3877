"""Phases: who wants to know hears what is being done and how far it is; nobody else pays."""

import logging

import numpy as np
import pytest

from engine import phases
from engine.boxes.toy import toy_task
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.ray_pool import RayPool
from engine.evaluators.serial import Serial


@pytest.fixture
def heard(caplog):
    """The phases said so far."""
    caplog.set_level(logging.INFO, phases.logger.name)
    return lambda: [record.phase for record in caplog.records if record.name == phases.logger.name]


def problem(box: str = "toy:", task=None) -> ProblemSpec:
    task = task or toy_task()
    splits = {"train": task.train, "val": task.val, "test": task.test}
    return ProblemSpec(box=box, classes=task.classes, template=task.template, splits=splits, prompt={"name": "text"})


def test_one_inside_another_takes_its_place_meanwhile(heard):
    phases.advance(3)  # of nothing
    with phases.phase("outer"), phases.phase("inner", 4):
        phases.advance(1)
    told = [(one.what, one.done, one.ended) for one in heard()]
    assert told == [
        ("outer", 0, False), ("inner", 0, False), ("inner", 1, False), ("inner", 0, True), ("outer", 0, False),
        ("outer", 0, True),
    ]  # fmt: skip
    with pytest.raises(KeyError), phases.phase("failing"):
        raise KeyError
    assert heard()[-1].ended
    phases.advance(3)
    assert heard()[-1].ended


def test_words():
    assert str(phases.Phase(what="starting Ray")) == "starting Ray ..."
    far = phases.Phase(what="encoding test images", done=320, total=1397, seconds=30.0)
    assert str(far) == "encoding test images: 320 of 1,397, 101 s left"


def test_staging_says_how_far_it_is(heard, monkeypatch):
    from tuning.data.load_task import load_task

    monkeypatch.setenv("KEYHOLE_CACHE", "off")
    serial = Serial(problem("mini:resnet", load_task("mini:digits", shots=1)))
    serial.read(None, "test", whole=False)
    test = [one for one in heard() if one.what == "encoding test images"]
    assert [one.what for one in heard()][:1] == ["opening mini:resnet"]
    assert [one.done for one in test if not one.ended] == [0, 256, 512, 768, 1024, 1280, 1397]
    assert {one.total for one in test} == {1397}


@pytest.mark.ray
def test_what_workers_do_is_said_too(ray_local, heard):
    pool = RayPool(problem(), 1)
    try:
        theta = np.zeros((1, pool.describe()[1].dim), np.float32)
        for split in ("train", "val", "val"):
            pool.evaluate(theta, split=split)
    finally:
        pool.close()
    said = [one.what for one in heard() if not one.ended]
    assert said == [
        "starting Ray",
        "opening toy: in 1 worker",
        "encoding train images in 1 worker",
        "encoding val images in 1 worker",
    ]


def test_a_part_counts_on_from_what_was_done_before(heard):
    with phases.phase("outer", 100):
        for done in (10, 20):
            with phases.after(done):
                phases.advance(1)
                with phases.phase("inner", 5):
                    phases.advance(2)
    told = [(one.what, one.done) for one in heard() if one.done and not one.ended]
    assert told == [("outer", 11), ("inner", 2), ("outer", 21), ("inner", 2)]
