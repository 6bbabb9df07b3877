"""The classifier: one answer per image, whatever the images come as and whatever stands beside them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import classifier as room
from engine.artifact import META, Artifact
from engine.boxes import open_box
from engine.classifier import Classifier
from engine.errors import ArtifactError, RefusedError, TaskError
from keyhole import tune
from tuning.data.load_task import load_task
from tuning.evaluate import evaluate, measure

TOY = {"task": "toy:", "box": "toy:", "budget": 20}
MINI = {"task": "mini:digits", "shots": 1, "budget": 8}
KINDS = {
    "shared context": {**TOY, "method": "momentum"},
    "context per class": {**TOY, "method": "sketch"},
    "linear": {**TOY, "method": "head:linear"},
    "tip": {**TOY, "method": "head:tip"},
    "clip-adapter": {**TOY, "method": "head:clip-adapter"},
    "score head": {**TOY, "box": "toy:?gives=scores", "method": "head:score-adapter"},
    "scores alone": {**TOY, "box": "toy:?gives=scores", "method": "momentum"},
    "top k": {**TOY, "box": "toy:?topk=2", "method": "nevergrad:DiagonalCMA"},
    "labels": {**TOY, "box": "toy:?gives=labels", "method": "nevergrad:DiagonalCMA"},
    "pixels": {**MINI, "method": "momentum", "prompt": {"name": "pixels", "grid": 3}},
    "words": {**MINI, "method": "words"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("runs")
    for kind, settings in KINDS.items():
        tune(out=home / kind, **settings)
    return {kind: home / kind for kind in KINDS}


def files(folder: Path, count: int = 5) -> list[str]:
    """Images of several sizes, the third of them turned by its EXIF entry."""
    paths = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 20, 3), np.uint8)
        exif = Image.Exif()
        if number == 2:
            exif[0x0112] = 6
        Image.fromarray(pixels).save(folder / f"{number}.png", exif=exif)
        paths.append(str(folder / f"{number}.png"))
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_the_run_recorded(runs, kind):
    classifier = Classifier.load(runs[kind])
    test = load_task(KINDS[kind]["task"], shots=1).test
    labels, probabilities = classifier.predict(test.source.read(range(len(test))))
    truth = [classifier.classes[label] for label in test.labels]
    accuracy = np.mean([label == true for label, true in zip(labels, truth, strict=True)])
    assert accuracy == classifier.metrics["accuracy"] == evaluate(classifier.artifact)["accuracy"]
    assert measure(classifier, test).accuracy == accuracy
    assert probabilities.shape == (len(test), len(classifier.classes)) and probabilities.dtype == np.float64
    if kind == "labels":
        assert np.isnan(probabilities).all()
        return
    assert labels == [classifier.classes[best] for best in probabilities.argmax(-1)]
    np.testing.assert_allclose(probabilities.sum(-1), 1)
    assert (probabilities > 0).sum(-1).max() == (2 if kind == "top k" else len(classifier.classes))


@pytest.mark.parametrize("kind", ["shared context", "tip", "pixels"])
def test_neither_order_nor_company_matters(runs, kind, monkeypatch):
    images = load_task(KINDS[kind]["task"], shots=1).test.source.read(range(70))
    classifier = Classifier.load(runs[kind])
    scores, (labels, probabilities) = classifier.scores(images), classifier.predict(images)
    assert scores.shape == probabilities.shape and scores.dtype == np.float32
    turned = classifier.predict(images[::-1])
    assert turned[0] == labels[::-1]
    np.testing.assert_allclose(turned[1], probabilities[::-1], atol=1e-5)
    np.testing.assert_allclose(classifier.scores(images[68]), scores[68:69], atol=1e-3)
    monkeypatch.setattr(room, "BLOCK", 3)
    np.testing.assert_allclose(Classifier.load(runs[kind]).scores(images[:8]), scores[:8], atol=1e-3)


@pytest.mark.parametrize("kind", ["shared context", "score head", "words"])
def test_an_image_may_come_as_anything(tmp_path, runs, kind):
    paths = files(tmp_path)
    classifier = Classifier.load(runs[kind])
    labels, probabilities = classifier.predict(paths)
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in opened]
    arrays[2] = np.rot90(arrays[2], -1)  # upright already
    data = [Path(path).read_bytes() for path in paths]
    for images in (list(map(Path, paths)), data, opened, arrays, [paths[0], data[1], opened[2], arrays[3], paths[4]]):
        told = classifier.predict(images)
        assert told[0] == labels
        np.testing.assert_array_equal(told[1], probabilities)
    for one in (paths[3], Path(paths[3]), data[3], opened[3], arrays[3], arrays[3][None], iter([paths[3]])):
        assert classifier.predict(one)[0] == labels[3:4]
    assert classifier.predict([]) == ([], pytest.approx(np.empty((0, len(classifier.classes)))))
    assert classifier.scores([]).shape == (0, len(classifier.classes))


def bomb() -> bytes:
    """A PNG whose header promises 10^10 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


HOSTILE = {
    "no file": ("missing.png", "missing.png: no such"),
    "a folder": (Path("/"), "/: cannot be read"),
    "nothing": (b"", "image 1: not a readable image .it is empty"),
    "text": (b"hello" * 100, "image 1: not a readable image"),
    "bomb": (bomb(), "image 1: "),
    "grey array": (np.zeros((8, 8), np.uint8), "image 1 is uint8 .8, 8."),
    "float array": (np.zeros((8, 8, 3)), "image 1 is float64"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "image 1 is uint8 .0, 8, 3."),
    "32 bits": (Image.new("F", (8, 8)), "image 1: 32-bit pixels"),
    "a number": (3, "image 1 is a int"),
    "none": (None, "image 1 is a NoneType"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_bad_image_is_named_and_spoils_no_other(tmp_path, runs, what, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad, words = HOSTILE[what]
    classifier = Classifier.load(runs["shared context"])
    good = files(tmp_path, 3)
    images = [good[0], bad, *good[1:]]
    for ask in (classifier.predict, classifier.scores):
        with pytest.raises(TaskError, match=words):
            ask(images)
    answers = list(classifier.each(images))
    assert isinstance(answers.pop(1), TaskError)
    labels, probabilities = classifier.predict(good)
    assert [answer.label for answer in answers] == labels
    np.testing.assert_array_equal([answer.probabilities for answer in answers], probabilities)
    np.testing.assert_array_equal([answer.probability for answer in answers], probabilities.max(-1))
    alone = list(classifier.each([bad]))
    assert len(alone) == 1 and isinstance(alone[0], TaskError)


def test_images_are_numbered_through_and_read_as_they_are_needed(runs, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 2)
    classifier = Classifier.load(runs["shared context"])
    image, taken = np.zeros((8, 8, 3), np.uint8), []

    def images():
        for number in range(7):
            taken.append(number)
            yield b"" if number == 4 else image

    answers = classifier.each(images())
    next(answers)
    assert taken == [0, 1]
    assert "image 4" in str(list(answers)[3])


def test_a_truncated_file_is_found_when_it_is_decoded(tmp_path, runs):
    paths = files(tmp_path)
    data = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(data[: len(data) // 2])
    with pytest.raises(TaskError, match=r"1\.png"):
        Classifier.load(runs["pixels"]).predict(paths)


@pytest.mark.parametrize("kind", ["labels", "top k"])
def test_scores_that_are_not_given_are_refused(runs, kind):
    with pytest.raises(RefusedError, match="neither scores nor features; use `predict`"):
        Classifier.load(runs[kind]).scores(np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("kind", ["shared context", "words"])
def test_the_text_tower_is_asked_once(runs, kind, monkeypatch):
    monkeypatch.setattr(room, "BLOCK", 2)
    classifier, asked = Classifier.load(runs[kind]), []
    answer = classifier.box.answer

    def counted(prompts, staged, rows):
        asked.append(prompts.needs())
        return answer(prompts, staged, rows)

    monkeypatch.setattr(classifier.box, "answer", counted)
    together = classifier.scores([np.full((8, 8, 3), number, np.uint8) for number in range(6)])
    assert len(asked) == 3 and not any(asked[1:])
    again = Classifier.load(runs[kind]).scores([np.full((8, 8, 3), number, np.uint8) for number in range(4, 6)])
    np.testing.assert_array_equal(together[4:], again)


def test_it_asks_another_box(runs):
    classifier = Classifier.load(runs["context per class"])
    task = load_task("toy:", shots=1)
    other = open_box("toy:?gives=labels", classes=("dog", "cat"), template=task.template)
    bound = classifier.bind(other)
    assert bound.classes == ("dog", "cat") and len(classifier.classes) == 5
    assert set(bound.predict(task.test.source.read(range(9)))[0]) <= {"dog", "cat"}
    narrow = classifier.open("toy:?gives=labels")
    assert narrow.predict(task.test.source.read(range(9)))[0] == classifier.predict(task.test.source.read(range(9)))[0]
    with pytest.raises(ArtifactError, match="only the classes"):
        Classifier.load(runs["tip"]).bind(other)
    with pytest.raises(ArtifactError, match="is 8 wide, mini:resnet takes vectors 64 wide"):
        classifier.open("mini:resnet", classes=("digit one", "digit two"), template="a photo of a {}.")
    with pytest.raises(ArtifactError, match="frame is 32 pixels wide, toy: takes 8"):
        Classifier.load(runs["pixels"]).bind(open_box("toy:", classes=task.classes, template=task.template))
    with pytest.raises(ArtifactError, match="on image features, which this box does not give"):
        Classifier.load(runs["tip"]).open("toy:?gives=scores").predict(task.test.source.read([0]))
    with pytest.raises(TaskError, match="labels up to 4, the classifier 2 classes"):
        measure(bound, task.test)


def test_another_model_under_the_same_name_is_refused_when_it_is_asked(tmp_path, runs):
    Classifier.load(runs["shared context"]).save(tmp_path / "a")
    meta = json.loads((tmp_path / "a" / META).read_text())
    meta["identity"]["weights"] = "other"
    (tmp_path / "a" / META).write_text(json.dumps(meta))
    classifier = Classifier.load(tmp_path / "a")
    assert classifier.identity["weights"] == "other" and len(classifier.classes) == 5
    with pytest.raises(ArtifactError, match="another toy:: weights differ"):
        classifier.predict(np.zeros((8, 8, 3), np.uint8))


def test_it_is_saved_and_told_apart(tmp_path, runs):
    classifier = Classifier.load(runs["tip"])
    again = Classifier.load(classifier.save(tmp_path / "a"))
    assert again.artifact.digest == classifier.artifact.digest
    assert len({Artifact.load(folder).digest for folder in runs.values()}) == len(runs)
    assert classifier.ledger["pairs"] > 0 and classifier.provenance["device"] == "cpu"
