"""The public API as ARCHITECTURE has it, line by line, and what else `keyhole` promises to those who import it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keyhole as kh
from engine.boxes.toy import ToyBox
from engine.errors import ArtifactError, BudgetError, RecipeError, TaskError


@pytest.fixture
def photos(tmp_path):
    task = kh.load_task("mini:digits")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, pixels in zip(paths, task.test.source.read([0, 1]), strict=True):
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


def test_the_snippet(tmp_path, monkeypatch, photos):
    monkeypatch.chdir(tmp_path)
    task = kh.load_task("mini:digits", shots=16, seed=1)
    box = kh.load_box("mini:resnet", task, device="cpu")
    clf = kh.tune(box, task, method="sketch", budget=40)
    clf.save("runs/mine")
    clf = kh.load("runs/mine", device="cpu")
    labels, probabilities = clf.predict(photos)
    assert set(labels) <= set(task.classes) and probabilities.shape == (2, len(task.classes))
    assert kh.evaluate(clf, task.test).accuracy == clf.metrics["accuracy"] and 0 < clf.ledger["evaluations"] <= 40

    with kh.Session(box, task, prompt="text", budget=20, workers=0) as session:
        search = kh.method("momentum", k=2).start(session.space, candidates=session.candidates, seed=1)
        while session.affordable:
            thetas = search.ask(session.affordable)
            search.tell(thetas, session.evaluate(thetas))
        clf = session.classifier(search.recommend())
    assert 0 < clf.ledger["evaluations"] <= 20 and clf.ledger["test_pairs"] == 0
    assert clf.metrics["accuracy"] is None and clf.metrics["val_accuracy"] is not None
    clf.save("runs/loop")
    loaded = kh.load("runs/loop").predict(photos)
    assert loaded[0] == clf.predict(photos)[0]
    np.testing.assert_allclose(loaded[1], clf.predict(photos)[1], atol=1e-6)


def test_objects_and_uris_give_the_same_bits(tmp_path):
    task = kh.load_task("toy:", shots=4, seed=3)
    box = kh.load_box("toy:", task)
    one = kh.tune(box, task, method="momentum", budget=30, out=tmp_path / "objects")
    other = kh.tune("toy:", "toy:", shots=4, seed=3, method="momentum", budget=30, out=tmp_path / "uris")
    assert one.artifact.arrays["theta"].tobytes() == other.artifact.arrays["theta"].tobytes()
    assert one.metrics == other.metrics and one.box is box
    again = kh.tune("toy:", "toy:", shots=4, seed=3, method="momentum", budget=30, out=tmp_path / "uris", resume=True)
    assert again.metrics == other.metrics


class Mine(ToyBox):
    """A box of a user's own, which no URI opens."""


def test_a_box_of_ones_own_needs_no_uri(tmp_path):
    task = kh.load_task("toy:", shots=4)
    own = Mine(uri="mine", classes=task.classes, template=task.template)
    tuned = kh.tune(own, task, method="head:gda", budget=5)
    assert kh.evaluate(tuned, task.test).accuracy == tuned.metrics["accuracy"]
    with pytest.raises(RecipeError, match="workers=2"):
        kh.tune(own, task, budget=5, workers=2)
    with pytest.raises(RecipeError, match="workers=2"):
        kh.Session(own, task, workers=2)


def test_a_session_ends_in_sentences():
    task = kh.load_task("toy:", shots=4)
    with kh.Session("toy:", task, budget=3) as session:
        with pytest.raises(RecipeError, match="no method has run"):
            session.classifier()
        session.evaluate(np.zeros((2, session.space.dim), np.float32))
        with pytest.raises(BudgetError, match="allow more"):
            session.evaluate(np.zeros((2, session.space.dim), np.float32))
    with kh.Session("toy:", task, budget=3) as session, pytest.raises(RecipeError, match="keep=True"):
        list(kh.method("head:gda").run(session))
    other = replace(task, classes=tuple(reversed(task.classes)))
    with pytest.raises(TaskError, match="other classes"):
        kh.Session(kh.load_box("toy:", other), task)
    with pytest.raises(RecipeError, match="did you mean 'momentum'"):
        kh.method("momentun")
    with pytest.raises(ArtifactError, match="holds no"):
        kh.load("nowhere")


@pytest.mark.parametrize("name", ["sketch", "momentum", "head:gda", "zero-shot"])
def test_any_method_runs_in_a_session(name):
    task = kh.load_task("toy:", shots=4)
    with kh.Session("toy:", task, budget=20, keep=True) as session:
        for _ in kh.method(name).run(session):
            pass
        found = session.classifier()
    assert kh.evaluate(found, task.test).images == len(task.test) and session.ledger.test_pairs == 0


def test_importing_is_quick():
    """Half a second, of which Python itself takes a tenth; the best of three, as the machine may be busy."""
    root = Path(__file__).parent.parent
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import keyhole"], cwd=root, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5
