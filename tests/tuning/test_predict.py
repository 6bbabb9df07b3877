"""`keyhole predict`: a row for each image, whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.classifier import Classifier
from keyhole import tune
from tuning import predict as room

TOY = {"task": "toy:", "box": "toy:", "method": "momentum", "budget": 20}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tune(out=folder, **TOY)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """150 images in two folders, one that is none, and files that are not looked at."""
    home = tmp_path / "photos"
    (home / "more").mkdir(parents=True)
    (home / ".hidden").mkdir()
    for number in range(150):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 9, 3), np.uint8)
        Image.fromarray(pixels).save(home / ("more" if number % 3 else "") / f"{number}.png")
    (home / "100.png").write_bytes(b"no image\r")
    shutil.copy(home / "0.png", home / ".hidden" / "0.png")
    (home / "notes.txt").write_text("no image by its name")
    return home


def rows_of(out: Path) -> list[dict[str, str]]:
    with open(out, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_has_its_row(command, run, photos, tmp_path):
    out = tmp_path / "new" / "predictions.csv"
    code, said, noted = command("predict", str(run), "--images", str(photos), "--out", str(out), "--json")
    told = json.loads(said)
    rows = rows_of(out)
    assert code == 0 and f"1 images could not be read: column error of {out} says why" in noted
    assert (told["images"], told["predicted"], told["unreadable"], told["out"]) == (151, 151, 1, str(out))
    assert sum(told["classes"].values()) == 150 and len(told["classes"]) == 5
    assert list(rows[0]) == ["file", "label", "probability", "error"]
    names = [row["file"] for row in rows]
    assert names == sorted(names) and "more/1.png" in names and not any("hidden" in name for name in names)
    classifier = Classifier.load(run)
    bad = next(row for row in rows if row["file"] == "100.png")
    assert not bad["label"] and not bad["probability"] and "100.png: not a readable image" in bad["error"]
    rows.remove(bad)
    labels, probabilities = classifier.predict([photos / row["file"] for row in rows])
    assert [row["label"] for row in rows] == labels and not any(row["error"] for row in rows)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(-1), atol=1e-5)


@pytest.mark.parametrize("kept", [0, 3, 30, 700, 1500, -1, None])
def test_what_was_cut_off_is_continued_to_the_same_file(command, run, photos, tmp_path, kept):
    out, words = tmp_path / "p.csv", ["predict", str(run), "--images", str(photos), "--json", "--out"]
    assert command(*words, str(out))[0] == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:kept])
    code, said, _ = command(*words, str(out))
    assert code == 0 and json.loads(said)["unreadable"] == 1 and out.read_bytes() == whole


def test_ctrl_c_leaves_what_is_done(command, run, photos, tmp_path, monkeypatch):
    out, words = tmp_path / "p.csv", ["predict", str(run), "--images", str(photos), "--out"]
    each = Classifier.each

    def interrupted(self, images):
        for number, answer in enumerate(each(self, images)):
            if number == 70:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "each", interrupted)
        code, said, noted = command(*words, str(out), "--json")
    assert code == 130 and len(rows_of(out)) == 70
    assert json.loads(said) == {"error": f"interrupted; the same command goes on with {out}", "resume": str(out)}
    assert command(*words, str(out))[0] == 0 and command(*words, str(tmp_path / "q.csv"))[0] == 0
    assert out.read_bytes() == (tmp_path / "q.csv").read_bytes()


def test_a_finished_file_asks_no_box(command, run, photos, tmp_path, monkeypatch):
    words = ["predict", str(run), "--images", str(photos), "--out", str(tmp_path / "p.csv"), "--json"]
    command(*words)
    monkeypatch.setattr(Classifier, "open", lambda *args, **settings: pytest.fail("a box was opened"))
    assert json.loads(command(*words)[1])["predicted"] == 0
    monkeypatch.chdir(photos.parent)
    assert command("predict", str(run), "--images", photos.name, "--out", "p.csv")[0] == 0


def test_new_files_are_added(command, run, photos, tmp_path):
    words = ["predict", str(run), "--images", str(photos), "--out", str(tmp_path / "p.csv"), "--json"]
    command(*words)
    shutil.copy(photos / "0.png", photos / "00.png")
    told = json.loads(command(*words)[1])
    rows = rows_of(tmp_path / "p.csv")
    assert (told["images"], told["predicted"], len(rows)) == (152, 1, 152)
    assert rows[-1] == {**next(row for row in rows if row["file"] == "0.png"), "file": "00.png"}


def test_rows_of_something_else_are_refused(command, run, photos, tmp_path):
    out, other = tmp_path / "p.csv", tmp_path / "other"
    words = ["--images", str(photos), "--out", str(out)]
    command("predict", str(run), *words)
    before = out.read_bytes()
    tune(out=other, **{**TOY, "seed": 2})
    for arguments, what in (
        ([str(other), *words], "artifact"),
        ([str(run), *words, "--box", "toy:?gives=labels"], "box"),
        ([str(run), "--images", str(photos / "more"), "--out", str(out)], "folder"),
    ):
        code, _, said = command("predict", *arguments)
        assert code == 2 and f"holds predictions with another {what}; name another --out" in said
    for content in (b"my thesis", b"my thesis\n", b'"\n', b"file,label\na,b\n", before):
        out.write_bytes(content)
        Path(f"{out}.json").unlink(missing_ok=True)
        code, _, said = command("predict", str(run), *words)
        assert code == 2 and "holds no predictions that can be continued" in said and out.read_bytes() == content


def test_odd_names_come_back(command, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [b'a,"b".png', b"a\rb.png", b"a\nb.png", b"\xff\xfe.png", "ä b.png".encode(), b"=1+1.png"]
    for name in names:
        Image.new("RGB", (8, 8), "red").save("x.png")
        os.rename(b"x.png", name)
    words = ["predict", str(run), "--images", ".", "--out", "p.csv", "--json"]
    assert command(*words)[0] == 0
    whole = Path("p.csv").read_bytes()
    assert {os.fsencode(row["file"]) for row in rows_of(Path("p.csv"))} == set(names)
    for kept in range(len(whole)):
        Path("p.csv").write_bytes(whole[:kept])
        assert command(*words)[0] == 0 and Path("p.csv").read_bytes() == whole


def test_files_and_folders_are_named_as_typed(command, run, photos, monkeypatch):
    monkeypatch.chdir(photos)
    code, _, _ = command("predict", str(run), "--images", "more/1.png", "notes.txt", "more", "--out", "../p.csv")
    rows = rows_of(photos.parent / "p.csv")
    assert code == 0 and len(rows) == 101 and [row["file"] for row in rows[:3]] == [
        "more/1.png", "notes.txt", "more/10.png",
    ]  # fmt: skip
    assert "not a readable image" in rows[1]["error"]


@pytest.mark.parametrize(
    ("images", "out", "words"),
    [
        ("nowhere", "p.csv", "nowhere: there is no such file or folder"),
        ("empty", "p.csv", "empty holds no images; images are files that end in .jpg"),
        ("x.png", "empty", "empty cannot be written"),
    ],
)
def test_mistakes_are_one_sentence(command, run, tmp_path, monkeypatch, images, out, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Image.new("RGB", (8, 8)).save("x.png")
    code, _, said = command("predict", str(run), "--images", images, "--out", out)
    assert code == 2 and said.count("\n") == 1 and words in said


def test_labels_alone_leave_probability_empty(command, run, photos, tmp_path):
    box = ["--box", "toy:?gives=labels"]
    assert command("predict", str(run), "--images", str(photos), "--out", str(tmp_path / "p.csv"), *box)[0] == 0
    rows = rows_of(tmp_path / "p.csv")
    assert all(row["label"] and not row["probability"] for row in rows if not row["error"])


def test_a_full_disk_is_one_sentence(tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    class Full:
        name, write = str(tmp_path / "p.csv"), full

    with pytest.raises(room.ArtifactError, match=r"p\.csv cannot be written .No space left"):
        room._append(Full(), b"")
