"""Tasks by URI: sampling, halves, the layouts of users' data, and every error by the name that it must hold."""

from __future__ import annotations

import json
import pickle
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import RecipeError, TaskError
from engine.images import Files
from engine.task import Split, Task
from tuning.data import load_task as tasks
from tuning.data.load_task import few_shot, halve, load_pool, load_task


def picture(path: Path, number: int) -> Path:
    """A small PNG whose red is `number`, so that a row can be told by what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(path)
    return path


def make_folder(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    """A folder a class with so many images each."""
    number = start
    for name, count in classes.items():
        for index in range(count):
            picture(root / name / f"{index:03d}.png", number)
            number += 1
    return root


def pool_of(counts: dict[str, int], val: int = 0) -> Task:
    """A pool of paths that are never read."""

    def split(prefix: str, sizes: list[int]) -> Split:
        labels = np.repeat(np.arange(len(sizes)), sizes)
        names = [f"{prefix}/{label}/{k}" for label, size in enumerate(sizes) for k in range(size)]
        order = np.random.default_rng(0).permutation(len(names))
        return Split(source=Files(tuple(names[k] for k in order)), labels=labels[order].astype(np.int64))

    return Task(
        uri="made:pool",
        classes=tuple(counts),
        template="a photo of a {}.",
        train=split("train", list(counts.values())),
        val=split("val", [val] * len(counts)),
        test=split("test", [3] * len(counts)),
    )


def paths(split: Split) -> list[str]:
    """What a drawn split refers to, in order."""
    return [split.source.source.paths[row] for row in split.source.rows]


def by_class(task: Task, split: Split) -> dict[str, list[str]]:
    return {
        name: [path for path, of in zip(paths(split), split.labels, strict=True) if of == label]
        for label, name in enumerate(task.classes)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sampling


def test_shots_a_class_and_disjoint_validation() -> None:
    task = few_shot(pool_of({"a": 30, "b": 25, "c": 40}), shots=16, seed=1)
    assert np.bincount(task.train.labels).tolist() == [16, 16, 16]
    assert np.bincount(task.val.labels).tolist() == [4, 4, 4]
    assert len(set(paths(task.train)) | set(paths(task.val))) == 60
    for name, files in by_class(task, task.train).items():
        assert all(file.startswith(f"train/{task.classes.index(name)}/") for file in files)


@pytest.mark.parametrize(("shots", "num_val"), [(1, 1), (2, 2), (4, 4), (8, 4)])
def test_validation_has_min_shots_4(shots: int, num_val: int) -> None:
    task = few_shot(pool_of({"a": 12, "b": 12}), shots=shots, seed=3)
    assert len(task.train) == 2 * shots and len(task.val) == 2 * num_val


def test_same_seed_same_sample_other_seed_other_sample() -> None:
    pool = pool_of({"a": 50, "b": 50})
    first, again, other = (few_shot(pool, shots=8, seed=seed) for seed in (1, 1, 2))
    assert paths(first.train) == paths(again.train) and paths(first.val) == paths(again.val)
    assert set(paths(first.train)) != set(paths(other.train))


def test_a_class_is_drawn_alone_and_samples_nest() -> None:
    whole = pool_of({"a": 30, "b": 30, "c": 30})
    fewer = pool_of({"a": 30, "b": 30})
    # The same images of a and b in the same relative order, whatever else the pool holds.
    rows = np.flatnonzero(whole.train.labels < 2)
    fewer = replace(
        fewer,
        train=Split(source=Files(tuple(whole.train.source.paths[r] for r in rows)), labels=whole.train.labels[rows]),
    )
    with_c, without_c = few_shot(whole, shots=8, seed=5), few_shot(fewer, shots=8, seed=5)
    for name in ("a", "b"):
        assert by_class(with_c, with_c.train)[name] == by_class(without_c, without_c.train)[name]
        assert by_class(with_c, with_c.val)[name] == by_class(without_c, without_c.val)[name]
    small = few_shot(whole, shots=4, seed=5)
    assert by_class(with_c, with_c.train)["c"][:4] == by_class(small, small.train)["c"]
    assert paths(with_c.val) == paths(small.val)


def test_classes_of_equal_size_do_not_share_their_draw() -> None:
    task = few_shot(pool_of({"a": 100, "b": 100}), shots=16, seed=1)
    drawn = [{path.rpartition("/")[2] for path in files} for files in by_class(task, task.train).values()]
    assert drawn[0] != drawn[1]


def test_validation_comes_from_the_datas_own_split() -> None:
    task = few_shot(pool_of({"a": 16, "b": 16}, val=5), shots=16, seed=1)
    assert all(path.startswith("val/") for path in paths(task.val)) and len(task.val) == 8


def test_base_and_new_halves() -> None:
    pool = pool_of({"a": 9, "b": 9, "c": 9, "d": 9, "e": 9}, val=5)
    base, new = halve(pool, "base"), halve(pool, "new")
    assert base.classes == ("a", "b", "c") and new.classes == ("d", "e")
    assert np.bincount(new.test.labels).tolist() == [3, 3] and np.bincount(base.test.labels).tolist() == [3, 3, 3]
    drawn, alone = few_shot(pool, shots=4, seed=2), few_shot(new, shots=4, seed=2)
    files = [
        alone.train.source.source.source.paths[alone.train.source.source.rows[row]] for row in alone.train.source.rows
    ]
    assert files == by_class(drawn, drawn.train)["d"] + by_class(drawn, drawn.train)["e"]
    assert halve(pool, "all") is pool


@pytest.mark.parametrize(
    ("shots", "needed", "counts"), [(16, 20, {"many": 40, "few": 19}), (1, 2, {"many": 9, "few": 1})]
)
def test_too_few_images_names_the_class(shots: int, needed: int, counts: dict[str, int]) -> None:
    with pytest.raises(
        TaskError, match=rf"'few' has {counts['few']} training images, but {needed} are needed \({shots} shots"
    ):
        few_shot(pool_of(counts), shots=shots, seed=1)


def test_too_few_validation_images_names_the_split() -> None:
    with pytest.raises(TaskError, match=r"'a' has 3 validation images, but 4 are needed .* \(and 1 other"):
        few_shot(pool_of({"a": 20, "b": 20}, val=3), shots=8, seed=1)


# ---------------------------------------------------------------------------------------------------------------------
# folder:


def test_folder_with_splits(tmp_path: Path) -> None:
    for start, (split, count) in enumerate({"train": 6, "val": 3, "test": 5}.items()):
        make_folder(tmp_path / split, {"maine_coon": count, "ragdoll": count}, 20 * start)
    (tmp_path / "train" / "ragdoll" / "notes.txt").write_text("not an image")
    task = load_task(f"folder:{tmp_path}?template=a photo of a {{}}, a type of pet.", shots=3)
    assert task.classes == ("maine coon", "ragdoll") and task.template == "a photo of a {}, a type of pet."
    assert len(task.train) == 6 and len(task.val) == 6 and len(task.test) == 10
    reds = {int(image[0, 0, 0]) for image in task.test.source.read(range(10))}
    assert reds == set(range(40, 50))
    assert {int(image[0, 0, 0]) for image in task.val.source.read(range(6))} == set(range(20, 26))


def test_folder_without_splits_sets_a_test_part_aside(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 10, "dog": 10})
    one, two = load_task(f"folder:{tmp_path}", shots=2, seed=1), load_task(f"folder:{tmp_path}", shots=2, seed=2)
    assert np.bincount(one.test.labels).tolist() == [4, 4]
    assert one.test.source.rows == two.test.source.rows, "the test split must not follow the run's seed"
    other = load_task(f"folder:{tmp_path}?split_seed=9&test=0.2", shots=2)
    assert np.bincount(other.test.labels).tolist() == [2, 2]
    shown = [
        {int(image[0, 0, 0]) for image in split.source.read(range(len(split)))}
        for split in (one.train, one.val, one.test)
    ]
    assert sum(map(len, shown)) == 4 + 4 + 8 and not (shown[0] & shown[1] or shown[0] & shown[2] or shown[1] & shown[2])


def test_folder_of_a_class_called_train(tmp_path: Path) -> None:
    make_folder(tmp_path, {"bus": 8, "train": 8})
    assert load_task(f"folder:{tmp_path}", shots=2).classes == ("bus", "train")


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "pets", {"cat": 8, "dog": 8})
    monkeypatch.chdir(tmp_path)
    task = load_task("folder:pets", shots=2)
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(task.train.source)).read([0])[0].shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("text", "classes"),
    [("cat: house cat\n", ("house cat", "dog")), ("tabby\n\nhound\n", ("tabby", "hound"))],
)
def test_class_names_file(tmp_path: Path, text: str, classes: tuple[str, ...]) -> None:
    make_folder(tmp_path, {"cat": 8, "dog": 8})
    (tmp_path / "classnames.txt").write_text(text)
    assert load_task(f"folder:{tmp_path}", shots=2).classes == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: a\ndgo: b\n", "'dgo: b'.*did you mean 'dog'"),
        ("one\ntwo\nthree\n", "3 names for 2 class folders"),
        ("cat: Dog\n", "'Dog' and 'dog' are the same"),
        ("cat: \n", "empty name"),
    ],
)
def test_bad_class_names_file(tmp_path: Path, text: str, message: str) -> None:
    make_folder(tmp_path, {"cat": 8, "dog": 8})
    (tmp_path / "classnames.txt").write_text(text)
    with pytest.raises(TaskError, match=message):
        load_task(f"folder:{tmp_path}", shots=2)


def test_folder_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nowhere does not exist"):
        load_task(f"folder:{tmp_path / 'nowhere'}")
    with pytest.raises(TaskError, match="has 0 classes|no class folders"):
        load_task(f"folder:{tmp_path}")
    make_folder(tmp_path / "a", {"cat": 8, "dog": 8})
    (tmp_path / "a" / "empty_one").mkdir()
    with pytest.raises(TaskError, match="class 'empty one' has no training images"):
        load_task(f"folder:{tmp_path / 'a'}", shots=2)
    make_folder(tmp_path / "b" / "train", {"cat": 8, "dog": 8})
    with pytest.raises(TaskError, match="no class folders in test/"):
        load_task(f"folder:{tmp_path / 'b'}", shots=2)
    make_folder(tmp_path / "b" / "test", {"cat": 2, "dgo": 2})
    with pytest.raises(TaskError, match=r"test.dgo: train/ has no class folder of this name, did you mean 'dog'"):
        load_task(f"folder:{tmp_path / 'b'}", shots=2)
    with pytest.raises(TaskError, match="template 'no place' must hold one"):
        load_task(f"folder:{tmp_path / 'a'}?template=no place")
    with pytest.raises(RecipeError, match="unknown option 'tempalte'.*did you mean 'template'"):
        load_task(f"folder:{tmp_path / 'a'}?tempalte=x {{}}")
    with pytest.raises(RecipeError, match="test=1.5 must lie between"):
        load_task(f"folder:{tmp_path / 'a'}?test=1.5")
    with pytest.raises(RecipeError, match="split_seed='x' must be a whole number"):
        load_task(f"folder:{tmp_path / 'a'}?split_seed=x")


def test_truncated_image_is_named_when_read(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cat": 6, "dog": 6})
    broken = tmp_path / "cat" / "000.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(broken)
    broken.write_bytes(broken.read_bytes()[:1024])
    pool = load_pool(f"folder:{tmp_path}")
    with pytest.raises(TaskError, match=re.escape(str(broken))):
        for split in (pool.train, pool.test):
            split.source.read(range(len(split)))


# ---------------------------------------------------------------------------------------------------------------------
# coop:


def make_coop(root: Path, name: str = "EuroSAT", images: str = "2750", **counts: int) -> dict[str, list[list]]:
    split: dict[str, list[list]] = {}
    for part, count in {"train": 5, "val": 4, "test": 3, **counts}.items():
        split[part] = []
        for label, word in enumerate(("Annual_Crop", "Forest")):
            for k in range(count):
                picture(root / images / word / f"{part}_{k}.png", k)
                split[part].append([f"{word}/{part}_{k}.png", label, word])
    (root / f"split_zhou_{name}.json").write_text(json.dumps(split))
    return split


@pytest.mark.parametrize(
    ("name", "images", "template"),
    [
        ("EuroSAT", "2750", "a centered satellite photo of {}."),
        ("OxfordPets", "images", "a photo of a {}, a type of pet."),
        ("SomethingNew", "", "a photo of a {}."),
    ],
)
def test_coop_layout(tmp_path: Path, name: str, images: str, template: str) -> None:
    make_coop(tmp_path, name, images)
    task = load_task(f"coop:{tmp_path}", shots=4)
    assert task.classes == ("Annual Crop", "Forest") and task.template == template
    assert (len(task.train), len(task.val), len(task.test)) == (8, 8, 6)
    assert task.train.source.read([0])[0].shape == (4, 4, 3)
    assert load_task(f"coop:{tmp_path / f'split_zhou_{name}.json'}", shots=4).test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_coop_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="must hold one split_zhou_.*found none"):
        load_task(f"coop:{tmp_path}")
    split = make_coop(tmp_path)
    (tmp_path / "2750" / "Forest" / "val_2.png").unlink()
    with pytest.raises(TaskError, match=r"val_2.png is listed in split_zhou_EuroSAT.json but missing"):
        load_task(f"coop:{tmp_path}", shots=2)
    with pytest.raises(TaskError, match=r"train_0.png' of the split file is in none of|listed in .* but missing"):
        load_task(f"coop:{tmp_path}?images=elsewhere", shots=2)
    file = tmp_path / "split_zhou_EuroSAT.json"
    file.write_text(json.dumps({**split, "val": [["Forest/test_0.png", 0, "Forest"]]}))
    with pytest.raises(TaskError, match="label 0 is 'Annual_Crop' and, at 'Forest/test_0.png', 'Forest'"):
        load_task(f"coop:{tmp_path}", shots=2)
    kept = {part: [row if row[1] == 0 else [row[0], 2, row[2]] for row in rows] for part, rows in split.items()}
    file.write_text(json.dumps({**kept, "val": []}))
    with pytest.raises(TaskError, match="no image has label 1"):
        load_task(f"coop:{tmp_path}", shots=2)
    file.write_text('{"train": [["only a path"]], "val": [], "test": []}')
    with pytest.raises(TaskError, match="is not a CoOp split"):
        load_task(f"coop:{tmp_path}", shots=2)
    (tmp_path / "split_zhou_Other.json").write_text("{}")
    with pytest.raises(TaskError, match="found split_zhou_EuroSAT.json, split_zhou_Other.json"):
        load_task(f"coop:{tmp_path}", shots=2)


# ---------------------------------------------------------------------------------------------------------------------
# Other schemes


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("folde:x", "names no known scheme.*did you mean 'folder'"),
        ("digits", "names no known scheme"),
        ("no.such.package:load", "no.such.package:load cannot be imported"),
        ("tuning.data.load_task:no_such_function", "no_such_function cannot be imported"),
        ("hf:org/name", "needs the package 'datasets'"),
    ],
)
def test_unknown_task(uri: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=message):
        load_task(uri)


@pytest.mark.parametrize("given", [{"shots": 0}, {"shots": -3}, {"seed": -1}, {"half": "bace"}])
def test_settings_out_of_range(given: dict) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(given))}="):
        load_task("toy:", **given)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_images_of_every_split_are_looked_over(tmp_path: Path, split: str) -> None:
    for part in ("train", "val", "test"):
        for name in ("a", "b"):
            for k in range(2):
                picture(tmp_path / part / name / f"{k}.png", k)
    load_task(f"folder:{tmp_path}", shots=2)
    bad = tmp_path / split / "b" / "1.png"
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(TaskError, match=rf"{split}/b/1.png: not a readable image"):
        load_task(f"folder:{tmp_path}", shots=2)


def test_a_part_of_the_test_split_is_drawn_by_the_seed() -> None:
    whole = load_task("toy:")
    one, again, other = (load_task("toy:", seed=seed, test_images=50) for seed in (1, 1, 2))
    assert (len(one.test), one.test_of, whole.test_of) == (50, 500, None)
    assert one.test.source == again.test.source != other.test.source
    assert len(set(one.test.source.rows)) == 50
    np.testing.assert_array_equal(one.test.labels, whole.test.labels[list(one.test.source.rows)])
    assert load_task("toy:", test_images=500).test_of is None
    with pytest.raises(RecipeError, match="test_images=0"):
        load_task("toy:", test_images=0)


def test_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("outside.data")
    module.load = lambda rest, *, size=9: pool_of({f"{rest} one": size, "two": size})
    module.wrong = lambda: "not a task"
    module.bare = lambda: replace(pool_of({"a": 9, "b": 9}), template="{} and {}")
    monkeypatch.setitem(sys.modules, "outside", types.ModuleType("outside"))
    monkeypatch.setitem(sys.modules, "outside.data", module)
    monkeypatch.setattr("tuning.data.load_task.looked_over", lambda task: task)  # these files are names alone
    task = load_task("outside.data:load:big?size=12", shots=8)
    assert task.classes == ("big one", "two") and task.uri == "outside.data:load:big?size=12"
    with pytest.raises(RecipeError, match="size='many' must be a whole number"):
        load_task("outside.data:load:big?size=many")
    with pytest.raises(RecipeError, match="returned str"):
        load_task("outside.data:wrong")
    with pytest.raises(RecipeError, match="nothing may follow the scheme"):
        load_task("outside.data:wrong:rest")
    with pytest.raises(TaskError, match="must hold one"):
        load_task("outside.data:bare")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pool: replace(pool, classes=("a", "A ")), "'a' and 'A ' are the same"),
        (lambda pool: replace(pool, classes=("a", " ")), "empty name"),
        (lambda pool: replace(pool, classes=("a",)), "has 1 classes"),
        (lambda pool: replace(pool, classes=("a", "b", "c")), "class 'c' has no training images"),
        (lambda pool: replace(pool, train=replace(pool.train, labels=pool.train.labels + 1)), "labels from 1 to 2"),
        (
            lambda pool: replace(pool, train=replace(pool.train, labels=pool.train.labels[1:])),
            "18 images but 17 labels",
        ),
        (lambda pool: replace(pool, test=pool.test.subset(np.zeros(0, int))), "has no test images"),
    ],
)
def test_pools_are_checked(change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("outside.data")
    module.load = lambda: change(pool_of({"a": 9, "b": 9}))
    monkeypatch.setitem(sys.modules, "outside", types.ModuleType("outside"))
    monkeypatch.setitem(sys.modules, "outside.data", module)
    with pytest.raises(TaskError, match=message):
        load_task("outside.data:load")


def test_hub_reads_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of the `datasets` package: the few calls that the loader makes of it."""

    class Stored:
        features = {"img": object(), "label": types.SimpleNamespace(names=["maine_coon", "dog"])}

        def __init__(self, split: str):
            self.files = [picture(tmp_path / split / f"{k}.png", k) for k in range(20)]

        def cast_column(self, column: str, kind: object) -> Stored:
            if column not in self.features:
                raise ValueError(f"no column {column}")
            return self

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, key):
            if key == "label":
                return [k % 2 for k in range(20)]
            return {"img": {"bytes": self.files[key].read_bytes(), "path": None}}

    opened: list[str] = []

    def load_dataset(name: str, config: str | None, split: str) -> Stored:
        opened.append(split)
        if split not in ("train", "test"):
            raise ValueError(f"Unknown split {split!r}")
        return Stored(split)

    module = types.ModuleType("datasets")
    module.load_dataset, module.Image = load_dataset, lambda decode: None
    monkeypatch.setitem(sys.modules, "datasets", module)
    task = load_task("hf:org/pets?image=img", shots=4)
    assert task.classes == ("maine coon", "dog") and len(task.train) == 8
    source = pickle.loads(pickle.dumps(task.test.source))
    assert int(source.read([3])[0][0, 0, 0]) == 3 and opened.count("test") == 2, "a sent source opens where it is read"
    with pytest.raises(TaskError, match="split 'dev'.*Unknown split"):
        load_task("hf:org/pets?image=img&val=dev")
    with pytest.raises(TaskError, match="no named classes in column 'breed'"):
        load_task("hf:org/pets?image=img&label=breed")


@pytest.mark.parametrize("uri", ["toy:?train=24&seed=3", "mini:digits"])
def test_embedded_tasks(uri: str) -> None:
    task = load_task(uri, shots=16)
    assert task.uri == uri and len(task.train) == 16 * len(task.classes) and len(task.val) == 4 * len(task.classes)
    drawn, held = (np.stack(split.source.read(range(len(split)))) for split in (task.train, task.val))
    assert not any((image == drawn).all((1, 2, 3)).any() for image in held), "validation images were drawn for training"


def test_unknown_embedded_task() -> None:
    with pytest.raises(TaskError, match="did you mean 'digits'"):
        load_task("mini:digit")
    with pytest.raises(RecipeError, match="nothing may follow"):
        load_task("toy:digits")


@pytest.mark.parametrize("data", ["chat\nété\n".encode("latin-1"), "cat\ndog\n".encode("utf-16"), bytes(range(256))])
def test_class_names_that_are_not_utf_8_are_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").touch()
    (tmp_path / "classnames.txt").write_bytes(data)
    with pytest.raises(TaskError, match="classnames.txt cannot be read: it is not UTF-8"):
        load_task(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"train": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        '{"train": []}'.encode("utf-16"),
        bytes(range(256)),
        b'{"train": [["a.jpg", 1e400, "a"]], "val": [], "test": []}',
        b'{"train": [["a.jpg", 99999999999999999999, "a"]], "val": [], "test": []}',
        b'{"train": [["a.jpg", "' + b"x" * 10_000 + b'", "a"]], "val": [], "test": []}',
    ],
)
def test_damaged_split_files_are_refused_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "split_zhou_Mine.json").write_bytes(data)
    with pytest.raises(TaskError, match="is not a CoOp split") as raised:
        load_task(f"coop:{tmp_path}")
    assert len(str(raised.value)) < 600


def test_every_scheme_resolves() -> None:
    """A table of strings must not rot: each names a module and a function that exist."""
    for scheme, target in tasks.SCHEMES.items():
        loader, _, _ = tasks._resolve(f"{scheme}:x")
        assert callable(loader) and target.endswith(loader.__name__)
    assert "mini:digits" in tasks.task_names()
