"""The feature cache: the same bits with and without, whatever the disk does."""

import json
import logging
import multiprocessing
import pickle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from engine.boxes import BoxRequest
from engine.boxes import feature_cache as cache_module
from engine.boxes.clip import box as clip
from engine.boxes.clip.box import ClipBox
from engine.boxes.feature_cache import FeatureCache, cache_bytes, cache_folder
from engine.images import Encoded, Files
from engine.preprocessing import Preprocess
from engine.protocols import Work
from engine.task import Subset

VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
PREPROCESS = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KEYHOLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip, "_READ", 4)
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return [open_clip.CLIP(16, VISION, TEXT).eval() for _ in range(2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 256, (10, 40, 50, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{number}.png")
    return Files(tuple(str(folder / f"{number}.png") for number in range(10)))


def box(model, **settings):
    given = {"preprocess": PREPROCESS, "identity": {"weights": "0"}} | settings
    preprocess, identity = given.pop("preprocess"), given.pop("identity")
    request = BoxRequest(uri="test:", classes=("cat", "dog"), template="a {}", options=given)
    made = ClipBox(model, open_clip.get_tokenizer(""), preprocess, request, identity=identity)
    made._block = 4
    made.work()
    return made


def entries(folder):
    return sorted(path for path in folder.glob("*/*"))


def count_encodes(monkeypatch):
    """Images that went through the model, whatever the account says."""
    real = []
    run = clip.ImageTower.encode
    monkeypatch.setattr(clip.ImageTower, "encode", lambda self, x: real.append(len(x)) or run(self, x))
    canary = clip.ImageTower.fingerprint

    def uncounted(self):
        before = len(real)
        found = canary(self)
        del real[before:]
        return found

    monkeypatch.setattr(clip.ImageTower, "fingerprint", uncounted)
    return real


def test_the_second_box_encodes_and_decodes_nothing_and_has_the_same_bits(models, files, folder, monkeypatch):
    real = count_encodes(monkeypatch)
    without = box(models[0], cache="off").stage(files).features
    assert sum(real) == 10 and not folder.exists()
    real.clear()
    cold = box(models[0])
    first = cold.stage(files).features
    assert sorted(real) == [2, 4, 4] and len(entries(folder)) == 3
    real.clear()
    monkeypatch.setattr(Encoded, "image", lambda *_: pytest.fail("decoded"))
    warm = box(models[0])
    second = warm.stage(files).features
    assert real == []
    np.testing.assert_array_equal(first, without)
    np.testing.assert_array_equal(second, without)
    assert second.dtype == np.float32
    # The account is of what a method costs, not of what ran before on this machine.
    assert cold.work() == warm.work() == Work(image_encodes=10)


def test_blocks_are_shared_by_all_splits_that_hold_them(models, files, monkeypatch):
    real = count_encodes(monkeypatch)
    one = box(models[0])
    one.stage(files)
    real.clear()
    one.stage(Subset(files, tuple(range(8))))
    assert real == []
    one.stage(Subset(files, (1, 0, 2, 3)))  # other company, other bits perhaps
    assert real == [4]


@pytest.mark.parametrize("other", ["weights", "identity", "preprocess", "precision", "content"])
def test_nothing_else_is_taken_for_it(models, files, folder, tmp_path, monkeypatch, other):
    real = count_encodes(monkeypatch)
    box(models[0]).stage(files)
    real.clear()
    settings = {
        "identity": {"identity": {"weights": "1"}},
        "preprocess": {"preprocess": Preprocess(size=32, mean=(0.5,) * 3, std=(0.25,) * 3)},
        "precision": {"precision": "bf16"},
    }
    if other == "content":
        path = tmp_path / "0.png"
        Image.new("RGB", (50, 40)).save(path)
        files = Files((str(path), *files.paths[1:]))
    # The same identity with other weights is a lie that the canary's bits find out.
    found = box(models[other == "weights"], **settings.get(other, {}))
    staged = found.stage(files)
    assert sum(real) == (4 if other == "content" else 10)
    real.clear()
    off = box(models[other == "weights"], cache="off", **settings.get(other, {})).stage(files)
    np.testing.assert_array_equal(staged.features, off.features)


@pytest.mark.parametrize("harm", ["cut", "empty", "a flipped bit"])
def test_a_damaged_entry_is_encoded_anew_and_rewritten(models, files, folder, monkeypatch, caplog, harm):
    whole = box(models[0]).stage(files).features
    path = entries(folder)[0]
    good = path.read_bytes()
    flipped = good[:200] + bytes([good[200] ^ 1]) + good[201:]
    path.write_bytes({"cut": good[:-7], "empty": b"", "a flipped bit": flipped}[harm])
    real = count_encodes(monkeypatch)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(box(models[0]).stage(files).features, whole)
    assert len(real) == 1 and "damaged" in caplog.text
    assert path.read_bytes() == good


def test_an_entry_of_another_length_is_none(folder):
    cache = FeatureCache(folder, {})
    cache.save(["a"], np.zeros((2, 16), np.float32))
    cache.save(["b"], np.zeros((1, 16), np.float32))
    assert cache.load(["a"]) is None and cache.load(["b"]).shape == (1, 16)


def test_a_folder_that_cannot_be_written_is_said_once(models, files, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KEYHOLE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        found = box(models[0]).stage(files).features
    np.testing.assert_array_equal(found, box(models[0], cache="off").stage(files).features)
    assert caplog.text.count("cannot be written") == 1


def test_off_and_elsewhere(models, files, tmp_path, monkeypatch):
    for value in ("off", str(tmp_path / "other")):
        monkeypatch.setenv("KEYHOLE_CACHE", value)
        box(models[0]).stage(files)
    assert cache_folder() == tmp_path / "other" / "features"
    assert cache_bytes(cache_folder()) == sum(path.stat().st_size for path in entries(cache_folder())) > 0
    monkeypatch.delenv("KEYHOLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "keyhole" / "features"


def test_the_oldest_entries_make_room(folder, monkeypatch):
    import os

    cache = FeatureCache(folder, {})
    for number in range(10):
        cache.save([str(number)], np.full((1, 100), number, np.float32))
        os.utime(cache._path([str(number)]), (number, number))
    size = cache_bytes(folder) // 10
    cache.trim()
    assert len(entries(folder)) == 10
    assert cache.load(["0"]) is not None  # used now, so no longer the oldest
    monkeypatch.setattr(cache_module, "LIMIT_BYTES", 5 * size)
    cache.trim()
    kept = [number for number in range(10) if cache.load([str(number)]) is not None]
    assert kept == [0, 7, 8, 9]


def _write(folder, start):
    cache = FeatureCache(folder, {})
    start.wait()
    for _ in range(30):
        for number in range(4):
            cache.save([str(number)], np.full((1, 4096), number, np.float32))


def test_several_writers_and_a_reader_see_whole_entries_only(folder, caplog):
    spawn = multiprocessing.get_context("fork")
    start = spawn.Event()
    writers = [spawn.Process(target=_write, args=(folder, start)) for _ in range(2)]
    for writer in writers:
        writer.start()
    cache, seen = FeatureCache(folder, {}), 0
    start.set()
    while any(writer.is_alive() for writer in writers):
        for number in range(4):
            found = cache.load([str(number)])
            if found is not None:
                seen += 1
                assert (found == number).all()
    assert seen > 0 and all(writer.exitcode == 0 for writer in writers)
    assert "damaged" not in caplog.text and len(entries(folder)) == 4


@pytest.mark.parametrize("warm", [False, True])
def test_each_file_is_read_once(models, files, monkeypatch, warm):
    if warm:
        box(models[0]).stage(files)
    read, fetch = [], Files.fetch
    monkeypatch.setattr(Files, "fetch", lambda self, row: read.append(row) or fetch(self, row))
    box(models[0]).stage(Subset(Subset(files, tuple(range(10))), tuple(range(10))))
    assert sorted(read) == list(range(10))


def test_workers_that_stage_at_once_share_the_work(models, files, monkeypatch):
    """Each takes the blocks in its own order, and those that another has encoded meanwhile from the cache."""
    real = count_encodes(monkeypatch)
    alone = box(models[0], cache="off").stage(files).features
    real.clear()
    one, other, save = box(models[0]), box(models[0]), FeatureCache.save

    def meanwhile(self, contents, features):
        save(self, contents, features)
        monkeypatch.setattr(FeatureCache, "save", save)
        np.testing.assert_array_equal(other.stage(files).features, alone)

    monkeypatch.setattr(FeatureCache, "save", meanwhile)
    np.testing.assert_array_equal(one.stage(files).features, alone)
    assert sorted(real) == [2, 4, 4], "each block was encoded once, by whoever came first"


def test_another_block_that_begins_alike_is_encoded(models, files, monkeypatch):
    real = count_encodes(monkeypatch)
    box(models[0]).stage(Subset(files, (0, 1, 2, 3)))
    other = Subset(files, (0, 1, 2, 9))
    found = box(models[0]).stage(other).features
    assert real == [4, 4]
    np.testing.assert_array_equal(found, box(models[0], cache="off").stage(other).features)
    real.clear()
    np.testing.assert_array_equal(found, box(models[0]).stage(other).features)
    assert real == []


def test_what_the_bits_depend_on_is_in_the_name(folder):
    cache = FeatureCache(folder, {"box": {"weights": "x"}})
    about = json.loads(cache._about)
    assert about["torch"] == torch.__version__ and about["threads"] == torch.get_num_threads()
    assert {"code", "pillow", "processor", "open_clip", "numpy", "box"} <= set(about)


def test_a_task_of_files_travels_as_paths(files):
    assert len(pickle.dumps(Subset(files, tuple(range(10))))) < 100 * len(files)
