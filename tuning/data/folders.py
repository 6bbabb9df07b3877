"""Users' own data on disk: folders of images, and CoOp's layout, each read into a pool.

A pool holds all images that few-shot splits may be drawn from, a validation split if the data has one, and the final
test split. Sources hold paths only: files are decoded in the box's process.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from engine.errors import LONGEST_VALUE, RecipeError, TaskError, nearest, shown
from engine.images import Files
from engine.protocols import Array
from engine.random_streams import Purpose, rng
from engine.task import Split, Task

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
DEFAULT_TEMPLATE = "a photo of a {}."
MOST_CLASSES = 10**6
NO_IMAGES = Split(source=Files(()), labels=np.zeros(0, np.int64))

COOP_TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}
"""Templates of CoOp's zero-shot baseline, by the name in split_zhou_NAME.json; the others use the default."""

COOP_FOLDERS = ("", "images", "2750", "101_ObjectCategories", "jpg", "SUN397", "UCF-101-midframes")
"""Folders of images in CoOp's data sets, below that of the split file."""


def folder(path: str, *, template: str = DEFAULT_TEMPLATE, test: float = 0.4, split_seed: int = 1) -> Task:
    """The pool of `folder:PATH`: a folder per class, below train/, val/ (optional) and test/, or directly below PATH.

    Classes are ordered by their folders' names. Their names are those of the folders with `_` as space, unless
    classnames.txt has others: lines `folder: name` for some folders, or one name per line for all, in that order.

    Args:
        path: PATH.
        template: A sentence with one `{}` for the class name.
        test: Share of each class, in (0, 1) and at least one image, that is held out where there is no train/.
        split_seed: Draws that split. It is not the run's seed: runs with several seeds share their test images.

    Raises:
        TaskError: There is no such folder, only test/ or val/ has a class, or classnames.txt is malformed.
        RecipeError: An option is out of range.
    """
    root = _root(path, "folder")
    if not 0 < test < 1 or split_seed < 0:
        raise RecipeError(f"folder:{path}: {test=} must lie between 0 and 1 and {split_seed=} must be 0 or more")
    if _has_folders(root / "train"):
        if not _has_folders(root / "test"):
            raise TaskError(
                f"{root} has train/ but no class folders in test/; add them, or put the class folders in PATH"
            )
        folders = _folders(root / "train")
        train, test_split = _read_split(root / "train", folders), _read_split(root / "test", folders)
        val = _read_split(root / "val", folders) if (root / "val").is_dir() else NO_IMAGES
    else:
        folders = _folders(root)
        everything, val = _read_split(root, folders), NO_IMAGES
        held = _held_out(everything, folders, test, split_seed)
        train, test_split = everything.subset(np.flatnonzero(~held)), everything.subset(np.flatnonzero(held))
    if not folders:
        raise TaskError(f"{root} has no class folders; put each class's images in a folder of its own")
    if not len(train) + len(test_split):
        raise TaskError(
            f"{root} has class folders without images; images are files that end in {', '.join(EXTENSIONS)}"
        )
    if not len(test_split):
        raise TaskError(
            f"{root} has no test images; without train/ and test/ folders each class needs 3 images or more: one to "
            "test on, one to select on, and one for each shot to train on"
        )
    return Task(
        uri=f"folder:{path}",
        classes=_class_names(root / "classnames.txt", folders),
        template=template,
        train=train,
        val=val,
        test=test_split,
    )


def coop(path: str, *, template: str | None = None, images: str | None = None) -> Task:
    """The pool of `coop:PATH`, CoOp's `split_zhou_NAME.json` or the folder that holds it.

    The file lists `[path, label, classname]` under train, val and test. In class names `_` becomes a space.

    Args:
        path: PATH.
        template: A sentence with one `{}`; None: CoOp's own for this data set.
        images: The folder of the images; None: it is searched among those that CoOp's data sets use.

    Raises TaskError where there is not exactly one split file, it is malformed or contradicts itself, or an image that
    it lists is missing.
    """
    split_file = _coop_file(path)
    try:
        listed = json.loads(split_file.read_text(encoding="utf-8"))
        entries = {
            name: [(str(file), int(label), str(word)) for file, label, word in listed[name]]
            for name in ("train", "val", "test")
        }
        if not all(0 <= label < MOST_CLASSES for rows in entries.values() for _, label, _ in rows):
            raise ValueError(f"labels are whole numbers from 0 to {MOST_CLASSES}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:  # not UTF-8 is a ValueError
        raise TaskError(
            f"{split_file} is not a CoOp split ({type(error).__name__}: {str(error)[:LONGEST_VALUE]}); it must hold "
            '{"train": [[path, label, classname], ...], "val": [...], "test": [...]}'
        ) from None
    root = split_file.parent
    home = root / images if images is not None else _image_folder(root, entries)
    splits = {
        name: Split(
            source=Files(tuple(_existing(home / file, split_file) for file, _, _ in rows)),
            labels=np.array([label for _, label, _ in rows], np.int64),
        )
        for name, rows in entries.items()
    }
    return Task(
        uri=f"coop:{path}",
        classes=_coop_classes(split_file, [row for rows in entries.values() for row in rows]),
        template=template or COOP_TEMPLATES.get(split_file.stem.removeprefix("split_zhou_"), DEFAULT_TEMPLATE),
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
    )


def _root(path: str, scheme: str) -> Path:
    if not path:
        raise TaskError(f"{scheme}: names no path; give {scheme}:PATH")
    # Workers may run in another folder, so the path must be absolute.
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise TaskError(f"{scheme}:{path} does not exist; give a folder that does")
    if scheme == "folder" and not root.is_dir():
        raise TaskError(f"{scheme}:{path} is a file; give the folder that holds the class folders")
    return root


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_folders(root: Path) -> bool:
    # A class may be named "train": then train/ holds images and no folders.
    return root.is_dir() and bool(_folders(root))


def _read_split(root: Path, folders: list[str]) -> Split:
    """The images of each class folder below `root`, by name. A missing folder has no images in this split."""
    unknown = sorted(set(_folders(root)) - set(folders))
    if unknown:
        raise TaskError(
            f"{root / unknown[0]}: train/ has no class folder of this name{nearest(unknown[0], folders)}; "
            "every class needs training images"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(folders):
        if not (root / name).is_dir():
            continue
        files = sorted(
            str(file)
            for file in (root / name).rglob("*")
            if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
        )
        paths += files
        labels += [label] * len(files)
    return Split(source=Files(tuple(paths)), labels=np.array(labels, np.int64))


def _held_out(everything: Split, folders: list[str], fraction: float, seed: int) -> Array:
    """`(n,)` bool: the test images of a folder without splits."""
    held = np.zeros(len(everything), bool)
    for label, name in enumerate(folders):
        rows = np.flatnonzero(everything.labels == label)
        order = rng(seed, zlib.crc32(name.encode()), Purpose.SPLIT).permutation(len(rows))
        held[rows[order[: max(1, round(fraction * len(rows)))]]] = len(rows) > 1
    return held


def _class_names(file: Path, folders: list[str]) -> tuple[str, ...]:
    names = {name: name.replace("_", " ") for name in folders}
    if not file.is_file():
        return tuple(names.values())
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TaskError(f"{file} cannot be read: {reason}; save it as UTF-8 text, a name a line") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [[part.strip() for part in line.split(":", 1)] for line in lines]
    if any(len(pair) == 2 and pair[0] in names for pair in pairs):
        for line, pair in zip(lines, pairs, strict=True):
            if len(pair) != 2 or pair[0] not in names:
                raise TaskError(f"{file}: {shown(line)} does not begin with a class folder{nearest(pair[0], names)}")
            names[pair[0]] = pair[1]
        return tuple(names.values())
    if len(lines) != len(folders):
        raise TaskError(
            f"{file} has {len(lines)} names for {len(folders)} class folders; give one a line in the folders' order, "
            "or lines 'folder: name'"
        )
    return tuple(lines)


def _coop_file(path: str) -> Path:
    root = _root(path, "coop")
    if root.is_file():
        return root
    files = sorted(root.glob("split_zhou_*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise TaskError(f"{root} must hold one split_zhou_*.json, found {found}; give the file itself as coop:PATH")
    return files[0]


def _image_folder(root: Path, entries: dict[str, list[tuple[str, int, str]]]) -> Path:
    """The folder below which the first listed image lies."""
    first = next((file for rows in entries.values() for file, _, _ in rows), "")
    for name in COOP_FOLDERS:
        if (root / name / first).is_file():
            return root / name
    tried = ", ".join(name or "." for name in COOP_FOLDERS)
    raise TaskError(f"{root}: image {first!r} of the split file is in none of {tried}; say where with ?images=FOLDER")


def _existing(file: Path, split_file: Path) -> str:
    if not file.is_file():
        raise TaskError(f"{file} is listed in {split_file.name} but missing; restore it or correct the split file")
    return str(file)


def _coop_classes(split_file: Path, rows: list[tuple[str, int, str]]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for file, label, name in rows:
        if names.setdefault(label, name) != name:
            raise TaskError(
                f"{split_file}: label {label} is {names[label]!r} and, at {file!r}, {name!r}; give each label one name"
            )
    if sorted(names) != list(range(len(names))):
        absent = next(label for label in range(len(names)) if label not in names)
        raise TaskError(f"{split_file}: labels must run from 0 without gaps, but no image has label {absent}")
    return tuple(names[label].replace("_", " ") for label in range(len(names)))
