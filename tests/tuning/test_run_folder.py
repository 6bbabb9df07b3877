"""A resumed run is the run that was begun: the same settings, images and bits, whatever happened to its folder."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mutations import mutated_arrays, mutated_bytes, mutated_json
from PIL import Image

import engine.files
from engine.checkpoint import load_state, save_state
from engine.errors import ArtifactError, BoxError, KeyholeError
from engine.evaluators.serial import Serial
from tuning.lease import LEASE, Lease
from tuning.recipe import load_recipe, make_recipe
from tuning.run import Tuning
from tuning.run_folder import CHECKPOINT, HISTORY, RECIPE, RESULT, read_history, read_result, resumed_recipe

TOY = {"task": "toy:", "box": "toy:", "budget": 40.0, "shots": 2, "checkpoint_s": 0.0}
METHODS = ("sketch", "momentum", "nevergrad:DiagonalCMA", "craft", "bpt-vlm", "sharpzo", "zip")


AGAIN = {"seconds", "retries", "bytes"}


def facts(folder):
    """Everything that must be the same to the bit: all but times, and what was asked again."""
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in read_history(folder)]
    result = {k: v for k, v in json.loads((folder / RESULT).read_text()).items() if k not in AGAIN}
    return (folder / "artifact" / "prompt.safetensors").read_bytes(), history, result


def finished(folder, settings=TOY, **more):
    run = Tuning(make_recipe({**settings, **more}), folder)
    for _ in run:
        pass
    return folder


def begun(folder, rounds=4, settings=TOY, **more):
    """A run that was left after so many rounds."""
    with contextlib.closing(iter(Tuning(make_recipe({**settings, **more}), folder))) as steps:
        for _ in range(rounds):
            next(steps)
    assert (folder / CHECKPOINT).exists() and not (folder / RESULT).exists()
    return folder


def resumed(folder, **changes):
    for _ in Tuning(make_recipe({**resumed_recipe(folder), **changes}), folder, resume=True):
        pass
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# The resolved recipe


@pytest.mark.parametrize("method", [*METHODS, "words", "cbbt", "zero-shot", "head:linear"])
def test_the_recipe_of_a_run_folder_makes_the_same_run(tmp_path, method):
    task = {"task": "mini:digits", "box": "mini:resnet"} if method in ("words", "cbbt") else {}
    budget = 130.0 if method == "sharpzo" else 12.0
    first = finished(tmp_path / "first", method=method, budget=budget, **task)
    again = tmp_path / "again"
    for _ in Tuning(make_recipe(load_recipe(first / RECIPE)), again):
        pass
    assert facts(first) == facts(again) and (first / RECIPE).read_text() == (again / RECIPE).read_text()
    assert (first / "artifact" / "keyhole.json").read_text().partition('"ledger"')[0] == (
        again / "artifact" / "keyhole.json"
    ).read_text().partition('"ledger"')[0]


def test_nothing_that_was_filled_in_is_null(tmp_path):
    told = load_recipe(finished(tmp_path / "text", TOY, budget=10.0) / RECIPE)
    assert told["data_seed"] == 1 and told["prompt"]["tokens"] == 8
    assert told["prompt"]["per_class"] == 200 and told["prompt"]["subspace"] == "full"
    assert told["method"]["k"] == 8 and told["method"]["name"] == "sketch"
    assert told["method"]["parts"] is None, "the prompt's space says it"
    told = load_recipe(finished(tmp_path / "own", TOY, method="momentum", budget=10.0) / RECIPE)
    assert told["prompt"]["tokens"] > 0 and told["prompt"]["per_class"] is False and told["method"]["radius"] == 0.3
    pixels = {"prompt": {"name": "pixels"}, "box": "mini:resnet", "task": "mini:digits", "method": "momentum"}
    told = load_recipe(finished(tmp_path / "pixels", {**TOY, **pixels, "budget": 4.0, "shots": 1}) / RECIPE)
    assert told["prompt"]["width"] == 4 and told["prompt"]["tokens"] is None
    words = {"method": "words", "box": "mini:resnet", "task": "mini:digits"}
    told = load_recipe(finished(tmp_path / "words", {**TOY, **words, "budget": 4.0, "shots": 1}) / RECIPE)
    assert told["prompt"]["name"] == "words" and told["head"] == "templates"


# ---------------------------------------------------------------------------------------------------------------------
# What it was begun with


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 60.0}, "budget=40.0, now 60.0"),
        ({"seed": 2}, "seed=1, now 2"),
        ({"shots": 1}, "shots=2, now 1.*other train and val images"),
        ({"task": "toy:?seed=2"}, "task=toy:, now toy:.seed=2; other train and val and test images"),
        ({"task": "toy:?label_noise=0.3"}, "other train images"),
        ({"method": {"name": "sketch", "k": 4}}, "method.k=8, now 4"),
        ({"method": "momentum"}, "method.name=sketch"),
        ({"device": "cuda"}, "device=cpu, now cuda"),
        ({"pool": {"chunk": 4}}, "pool.chunk=2, now 4"),
    ],
)
def test_other_settings_are_refused_with_what_differs(tmp_path, change, says):
    folder = begun(tmp_path / "run")
    before = (folder / RECIPE).read_text()
    with pytest.raises(ArtifactError, match=says) as caught:
        resumed(folder, **change)
    assert "set that back" in str(caught.value) and "to start anew" in str(caught.value)
    assert (folder / RECIPE).read_text() == before
    assert facts(resumed(folder)) == facts(finished(tmp_path / "whole"))


def test_settings_that_change_no_bit_may_differ(tmp_path):
    folder = begun(tmp_path / "run")
    resumed(folder, checkpoint_s=9.0, pool={"timeout_s": 5.0, "cpus": 2.0})
    assert load_recipe(folder / RECIPE)["pool"]["timeout_s"] == 5.0
    assert facts(folder) == facts(finished(tmp_path / "whole"))


def test_another_version_is_refused(tmp_path, monkeypatch):
    folder = begun(tmp_path / "run")
    monkeypatch.setattr("tuning.run.release", lambda: "99")
    with pytest.raises(ArtifactError, match="version .* now 99"):
        resumed(folder)


def images(root, count=8):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("one", "two"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number:02}.png")


@pytest.mark.parametrize(("part", "says"), [("train", "other train"), ("test", "other test images")])
def test_other_images_are_refused_and_the_paths_of_a_recipe_are_absolute(tmp_path, monkeypatch, part, says):
    images(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    settings = {**TOY, "task": "folder:data?template=a photo of the number {}.", "box": "mini:resnet", "budget": 20.0}
    folder = begun(Path("run"), 2, settings)
    assert load_recipe(folder / RECIPE)["task"].startswith(f"folder:{tmp_path}/data?template=")
    monkeypatch.chdir("/")
    folder = tmp_path / "run"
    file = sorted((tmp_path / "data" / part / "two").iterdir())[0]
    if part == "test":
        data, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(data + b"\0")
    else:
        shutil.copy(file, file.with_name("more.png"))
    with pytest.raises(ArtifactError, match=says):
        resumed(folder)
    if part == "test":
        file.write_bytes(data)
        os.utime(file, ns=times)
    else:
        file.with_name("more.png").unlink()
    resumed(folder)
    monkeypatch.chdir(tmp_path)
    assert facts(folder) == facts(finished(Path("whole"), settings))


# ---------------------------------------------------------------------------------------------------------------------
# The history


@pytest.mark.parametrize("harm", ["cut", "half a line more", "none", "first lines only"])
def test_a_history_that_came_to_harm_does_not_strand_a_run(tmp_path, harm, caplog):
    whole, folder = facts(finished(tmp_path / "whole")), begun(tmp_path / "run")
    path = folder / HISTORY
    data = path.read_bytes()
    if harm == "none":
        path.unlink()
    else:
        path.write_bytes(
            {"cut": data[:-9], "half a line more": data + b'{"step": 4, "ev', "first lines only": data[:300]}[harm]
        )
    resumed(folder)
    prompt, history, result = facts(folder)
    assert (prompt, result) == (whole[0], whole[2])
    assert [line for line in whole[1] if line in history] == history and history[-1] == whole[1][-1]
    assert (history == whole[1]) == (harm == "half a line more")
    assert ("lost" in caplog.text) == (harm != "half a line more")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00\x01" * 50 + b"\n", b"[1]\n{}\n", b"\n\n\n", b"[" * 5000 + b"\n"])
def test_a_history_of_something_else_is_one_sentence(tmp_path, data):
    folder = begun(tmp_path / "run")
    (folder / HISTORY).write_bytes(data)
    with pytest.raises(ArtifactError, match=f"line 1 of {folder}/history.jsonl is not the record"):
        resumed(folder)
    (folder / HISTORY).unlink()
    resumed(folder)


def test_the_history_is_on_disk_before_the_state_that_counts_on_it(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr("tuning.run_folder.append_lines", lambda path, lines: order.append("history"))
    monkeypatch.setattr("engine.checkpoint.save_state", lambda path, state: order.append("state"))
    finished(tmp_path / "run", budget=10.0)
    assert order[:4] == ["history", "state"] * 2
    synced = []
    monkeypatch.undo()
    monkeypatch.setattr(engine.files.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    engine.files.append_lines(tmp_path / "h", ["x"])
    assert synced == [str(tmp_path / "h")]


# ---------------------------------------------------------------------------------------------------------------------
# Results


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"task": 1}', "\x00", "[" * 5000])
def test_a_damaged_result_is_one_sentence(tmp_path, text):
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(ArtifactError, match="is not the result of a run"):
        read_result(tmp_path)


def test_a_finished_run_keeps_no_checkpoint_and_no_lease(tmp_path):
    folder = finished(tmp_path / "run")
    assert sorted(path.name for path in folder.iterdir()) == ["artifact", HISTORY, RECIPE, RESULT]


def test_what_is_no_run_is_not_resumed(tmp_path):
    with pytest.raises(ArtifactError, match="holds no run"):
        resumed_recipe(tmp_path)
    with pytest.raises(ArtifactError, match="is no folder"):
        resumed_recipe(tmp_path / "nowhere")
    (tmp_path / "compare.yaml").write_text("{}")
    with pytest.raises(ArtifactError, match="keyhole compare --resume"):
        resumed_recipe(tmp_path)


def test_a_folder_that_is_being_written_is_left_alone(tmp_path):
    folder = begun(tmp_path / "run")
    with Lease(folder), pytest.raises(ArtifactError, match="is being written by process"):
        resumed(folder)
    first = iter(Tuning(make_recipe(TOY), tmp_path / "two"))
    next(first)
    with pytest.raises(ArtifactError, match="is being written by process"):
        finished(tmp_path / "two")
    first.close()
    assert not (folder / LEASE).exists() and not (tmp_path / "two" / LEASE).exists()


# ---------------------------------------------------------------------------------------------------------------------
# Ends before the end


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_box_that_fails_leaves_a_checkpoint_of_the_last_round(tmp_path, method, split, monkeypatch):
    """What the failed round had booked already is not booked twice."""
    settings = {"method": method, "budget": 140.0 if method == "sharpzo" else 60.0}
    whole = facts(finished(tmp_path / "whole", **settings))
    calls = []

    def failing(answer, asked):
        def answered(self, *args, **more):
            calls.append(asked)
            if len(calls) > 4 and asked == split:
                raise BoxError("the box is gone")
            return answer(self, *args, **more)

        return answered

    monkeypatch.setattr(Serial, "evaluate", failing(Serial.evaluate, "train"))
    monkeypatch.setattr(Serial, "read", failing(Serial.read, "val"))
    with pytest.raises(BoxError, match="the box is gone"):
        finished(tmp_path / "run", **settings, checkpoint_s=0.0 if split == "val" else 3600.0)
    monkeypatch.undo()
    assert (tmp_path / "run" / CHECKPOINT).exists()
    assert facts(resumed(tmp_path / "run", checkpoint_s=0.0)) == whole


def test_a_run_killed_after_its_last_round_only_reads_the_test_split(tmp_path, monkeypatch):
    whole = facts(finished(tmp_path / "whole"))
    monkeypatch.setattr("tuning.run.accuracies_on_test", lambda *given, **more: (_ for _ in ()).throw(BoxError("gone")))
    with pytest.raises(BoxError):
        finished(tmp_path / "run")
    monkeypatch.undo()
    recipe = make_recipe(resumed_recipe(tmp_path / "run"))
    assert list(Tuning(recipe, tmp_path / "run", resume=True)) == []
    assert facts(tmp_path / "run") == whole


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", ["state", HISTORY, RESULT, "prompt.safetensors"])
def test_a_disk_that_fills_up_is_one_sentence_and_costs_nothing(tmp_path, monkeypatch, reason, name):
    whole = facts(finished(tmp_path / "whole"))
    folder, real, seen = tmp_path / "run", open, []

    def failing(file, mode="r", *rest, **more):
        if name in str(file) and mode[0] in "wa":
            seen.append(file)
            if len(seen) > (2 if name in ("state", HISTORY) else 0):
                raise OSError(reason, os.strerror(reason), str(file))
        return real(file, mode, *rest, **more)

    monkeypatch.setattr("engine.checkpoint.SHARE", 0)
    monkeypatch.setattr("builtins.open", failing)
    monkeypatch.setattr("io.open", failing)
    with pytest.raises(ArtifactError, match=f"{os.strerror(reason)}.*go on with: keyhole tune --resume") as caught:
        finished(folder)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]
    assert facts(resumed(folder)) == whole


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_real_disk_that_is_full(tmp_path):
    """A run on a disk of a few kilobytes, which is made larger afterwards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        settings = {"budget": 200.0, "method": {"name": "sketch", "k": 4}}
        with pytest.raises(ArtifactError, match="No space left.*--resume"):
            finished(disk / "run", **settings)
        assert not [path for path in disk.rglob("*") if ".tmp" in path.name]
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        assert facts(resumed(disk / "run")) == facts(finished(tmp_path / "whole", **settings))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that anybody may have written


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Of each method: a begun run, and what it arrives at."""
    home = tmp_path_factory.mktemp("stopped")
    found = {}
    for method in METHODS:
        settings = {**TOY, "method": method, "budget": 60.0 if method != "sharpzo" else 140.0}
        folder = begun(home / method.replace(":", "-"), 3, settings)
        found[method] = folder, facts(finished(home / "whole" / method.replace(":", "-"), settings))
    return found


def test_a_changed_file_is_refused_or_gives_the_same_result(stopped, tmp_path):
    random = np.random.default_rng(1)
    folder, whole = stopped["sketch"]
    data, refused = (folder / CHECKPOINT).read_bytes(), 0
    for number in range(150):
        kind, damaged = mutated_bytes(data, random)
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / CHECKPOINT).write_bytes(damaged)
        try:
            resumed(copy)
        except KeyholeError as error:
            refused += 1
            assert "\n" not in str(error) and "remove" in str(error), kind
        else:
            assert facts(copy) == whole, kind
    assert refused > 100


@pytest.mark.parametrize("method", METHODS)
def test_a_forged_state_never_ends_in_a_traceback(stopped, tmp_path, method, recwarn):
    """With a checksum that agrees: only what it holds can tell."""
    random = np.random.default_rng(METHODS.index(method))
    folder, _ = stopped[method]
    state, refused = load_state(folder / CHECKPOINT), 0
    for number in range(40):
        kind, forged = mutated_tree(state, random)
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        save_state(copy / CHECKPOINT, forged)
        try:
            resumed(copy)
        except KeyholeError as error:
            refused += 1
            assert "\n" not in str(error), kind
        shutil.rmtree(copy)
    assert refused > 20


def mutated_tree(state, random):
    """A state with one place of it changed: of its JSON part, or of an array."""
    arrays = {}

    def taken(value, path):
        if isinstance(value, np.ndarray):
            arrays[path] = value
            return {"array": path}
        return {k: taken(v, f"{path}.{k}") for k, v in value.items()} if isinstance(value, dict) else value

    def filled(value):
        if isinstance(value, dict):
            return (
                arrays.get(str(value["array"]), 0)
                if set(value) == {"array"}
                else {k: filled(v) for k, v in value.items()}
            )
        return [filled(item) for item in value] if isinstance(value, list) else value

    tree = taken(state, "")
    if random.random() < 0.5:
        kind, arrays = mutated_arrays(arrays, random)
        return kind, filled(tree)
    while True:
        kind, forged = mutated_json(tree, random)
        if isinstance(forged, dict) and "deeply" not in kind:  # of depth, see the file's own test
            return kind, filled(forged)
