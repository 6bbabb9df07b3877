"""The shelf: what is taken, refused, replaced, removed, led and rolled back."""

from __future__ import annotations

import shutil
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.artifact import ARRAYS, META, Artifact
from engine.boxes import open_box
from engine.errors import ArtifactError
from serve import artifact_shelf
from serve.artifact_shelf import KEPT, Shelf, Traffic
from serve.folding import fold


@pytest.fixture(scope="module")
def artifact(runs) -> Artifact:
    return Artifact.load(runs["shared-context"])


@pytest.fixture(scope="module")
def folding(artifact):
    box = open_box("toy:", classes=artifact.meta["classes"], template=artifact.meta["template"])
    return lambda found: fold(found, box, 16)


@pytest.fixture
def shelf(folding, tmp_path) -> Shelf:
    return Shelf(folding, tmp_path)


def write(artifact: Artifact, folder: Path, number: int = 0) -> str:
    """Another version of an artifact in a folder; its version."""
    meta = {**artifact.meta, "method": f"version {number}"}
    made = replace(artifact, meta=meta)
    made.save(folder)
    return Artifact.load(folder).digest[:12]


def test_they_come_change_and_go(shelf, artifact, tmp_path):
    assert shelf.resolve("pets") is None
    first = write(artifact, tmp_path / "pets", 1)
    assert shelf.scan() and shelf.resolve("pets").version == first
    assert not shelf.scan(), "nothing has changed"
    second = write(artifact, tmp_path / "pets", 2)
    shelf.scan()
    assert [shelf.resolve(name).version for name in ("pets", "pets@latest", f"pets@{first}")] == [second, second, first]
    shutil.rmtree(tmp_path / "pets")
    shelf.scan()
    assert shelf.resolve("pets").version == second, "it may be on its way back"
    shelf.scan()
    assert shelf.resolve("pets") is None and shelf.offers() == []


def test_run_folders_too_and_nothing_else(shelf, artifact, tmp_path):
    write(artifact, tmp_path / "run" / "artifact")
    write(artifact, tmp_path / "half.tmp")
    write(artifact, tmp_path / "no name")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    shelf.scan()
    assert [offer.name for offer in shelf.offers()] == ["run"]


@pytest.mark.parametrize("damage", ["cut", "swapped", "no json", "other weights"])
def test_a_broken_one_is_refused_and_the_old_one_stays(shelf, artifact, tmp_path, damage):
    home = tmp_path / "pets"
    before = write(artifact, home, 1)
    shelf.scan()
    answered = shelf.resolve("pets")
    if damage == "other weights":
        replace(artifact, meta={**artifact.meta, "identity": {"weights": "others"}}).save(home)
    else:
        write(artifact, home, 2)
        {
            "cut": lambda: (home / ARRAYS).write_bytes((home / ARRAYS).read_bytes()[:-8]),
            "swapped": lambda: (home / ARRAYS).write_bytes(b"x" * 500),
            "no json": lambda: (home / META).write_text("{"),
        }[damage]()
    shelf.scan()
    assert shelf.resolve("pets") is answered and answered.version == before
    (offer,) = shelf.offers()
    assert offer.live == before and len(offer.refused) == 1 and str(tmp_path) not in offer.refused[0].reason
    repaired = write(artifact, home, 3)
    shelf.scan()
    assert shelf.resolve("pets").version == repaired and shelf.offers()[0].refused == ()


def test_one_that_is_named_and_missing_is_told_of(folding, tmp_path):
    shelf = Shelf(folding)
    shelf.direct({"pets": [tmp_path / "nowhere"]}, {})
    (offer,) = shelf.offers()
    assert offer.live is None and "nowhere" in offer.refused[0].reason and shelf.resolve("pets") is None
    with pytest.raises(ArtifactError, match="letters"):
        shelf.direct({"../pets": [tmp_path]}, {})


def test_traffic_is_led_shared_and_rolled_back(folding, artifact, tmp_path):
    shelf = Shelf(folding)
    old, new = (write(artifact, tmp_path / name, number) for number, name in enumerate(("old", "new")))
    both = {"pets": [str(tmp_path / "old"), str(tmp_path / "new")]}
    shelf.direct(both, {})
    assert shelf.resolve("pets").version == new
    shelf.direct(both, {"pets": Traffic(live=old[:6], candidate=new, share=0.25, shadows=(new,))})
    drawn = [shelf.resolve("pets").version for _ in range(2000)]
    assert set(drawn) == {old, new} and 0.2 < drawn.count(new) / 2000 < 0.3
    assert [entry.version for entry in shelf.shadows(shelf.resolve(f"pets@{old}"))] == [new]
    (offer,) = shelf.offers()
    assert (offer.live, offer.candidate, offer.share, offer.shadows[0].version) == (old, new, 0.25, new)
    shelf.direct(both, {"pets": Traffic(live="none such")})
    assert shelf.resolve("pets").version == new
    shelf.direct({}, {})
    shelf.scan()
    assert shelf.resolve("pets") is None


def test_old_versions_do_not_pile_up(shelf, artifact, tmp_path):
    for number in range(KEPT + 3):
        last = write(artifact, tmp_path / "pets", number)
        shelf.scan()
    assert len(shelf.offers()[0].versions) == KEPT and shelf.resolve("pets").version == last


def test_a_thousand_load_in_seconds_and_little_memory(shelf, artifact, tmp_path):
    count, classes = 1000, len(artifact.meta["classes"])
    for number in range(count):
        write(artifact, tmp_path / f"pets-{number}", number)
    tracemalloc.start()
    start = time.process_time()
    shelf.scan()
    seconds, (kept, _) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    rows = sum(version.row_bytes for offer in shelf.offers() for version in offer.versions)
    assert len(shelf.offers()) == count and seconds < 20
    assert (kept - rows) / (count * classes) < 1000


def test_readers_never_see_half_a_change(shelf, artifact, tmp_path, monkeypatch):
    """A request that asks in the middle of a scan gets the old one whole."""
    first = write(artifact, tmp_path / "pets", 1)
    shelf.scan()
    seen = []
    honest = artifact_shelf.Artifact.load

    def slow(folder):
        seen.append(shelf.resolve("pets").version)
        return honest(folder)

    monkeypatch.setattr(artifact_shelf.Artifact, "load", slow)
    second = write(artifact, tmp_path / "pets", 2)
    shelf.scan()
    assert first in seen and shelf.resolve("pets").version == second


def test_rows_are_the_artifacts_own(shelf, artifact, tmp_path):
    write(artifact, tmp_path / "pets")
    shelf.scan()
    rows = shelf.resolve("pets").folded.folded.text
    np.testing.assert_array_equal(rows, artifact.arrays["text_features"])
    assert rows.base is None, "the file it came from is not kept"
