"""What a run was begun with (the resolved recipe, the images, the version), and whether a resumed run has the same.

Resumed with other settings or images, a run would report a result that was not tuned on them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.artifact import ARRAYS
from engine.errors import ArtifactError, TaskError
from engine.images import Files, digest, one_by_one
from engine.task import Split, Subset, Task
from tuning.recipe import Recipe

FREE = ("workers", "checkpoint_s", "pool.cpus", "pool.gpus", "pool.timeout_s")
"""Settings that a resumed run may change, as they change no bit of the result."""
SAMPLE = 256
"""How many evenly spaced images of a split are compared by content, where they are not files."""


def origin_of(recipe: Recipe, task: Task, version: str) -> dict[str, Any]:
    """What a checkpoint records of the run's origin: `settings` by dotted key, `images` by split, and so on.

    Raises:
        TaskError: An image file is missing.
        ArtifactError: The artifact to start from cannot be read.
    """
    return {
        "version": version,
        "settings": settings_of(recipe),
        "classes": hashlib.sha256(json.dumps([task.classes, task.template]).encode()).hexdigest(),
        "images": {name: images_digest(getattr(task, name)) for name in ("train", "val", "test")},
        "start": None if recipe.start is None else _start_digest(Path(recipe.start)),
    }


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Settings that the result depends on, by dotted key."""
    return {key: value for key, value in _flat(recipe.as_dict()) if key not in FREE}


def check_origin(told: str, now: Mapping[str, Any], where: Path, *, final: bool) -> None:
    """Compare the origin in a checkpoint with the present one.

    Args:
        told: The origin in the checkpoint, as JSON.
        now: The present `origin_of`.
        where: The checkpoint.
        final: Whether the box is open and all settings are resolved; if not, those that are null now may differ.

    Raises ArtifactError, naming what differs, where something does.
    """
    try:
        begun = json.loads(told)
    except (ValueError, RecursionError):
        begun = None
    if not isinstance(begun, dict) or begun.keys() != now.keys():
        raise ArtifactError(f"checkpoint {where} does not say what its run was begun with; remove it to start anew")
    found = []
    if begun["version"] != now["version"]:
        found.append(f"version {begun['version']} of Keyhole, now {now['version']}")
    before = begun["settings"] if isinstance(begun["settings"], dict) else {}
    for key in sorted({*before, *now["settings"]}):
        here = now["settings"].get(key)
        if before.get(key) != here and (final or here is not None):
            found.append(f"{key}={_shown(before.get(key))}, now {_shown(here)}")
    if begun["classes"] != now["classes"]:
        found.append("other class names or another template")
    images = begun["images"] if isinstance(begun["images"], dict) else {}
    changed = [name for name, told in now["images"].items() if images.get(name) != told]
    if changed:
        found.append(f"other {' and '.join(changed)} images")
    if begun["start"] != now["start"]:
        found.append("another prompt to start from")
    if found:
        raise ArtifactError(
            f"this run was begun with {'; '.join(found)}: set that back to go on, or remove {where} to start anew"
        )


def images_digest(split: Split) -> str:
    """SHA-256 (hex) of a split's labels and images: files by path, size and time of change, others by content.

    Raises TaskError where a file is missing.
    """
    source, rows = split.source, np.arange(len(split))
    while isinstance(source, Subset):
        source, rows = source.source, np.asarray(source.rows, np.int64)[rows]
    told = hashlib.sha256(np.asarray(split.labels, np.int64).tobytes())
    if isinstance(source, Files):
        for row in rows:
            told.update(_file(os.path.abspath(source.paths[row])))
    elif len(rows):
        some = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).round().astype(np.int64))]
        for image in one_by_one(source, [int(row) for row in some]):
            told.update(digest(image).encode())
    return told.hexdigest()


def _file(path: str) -> bytes:
    try:
        found = os.stat(path)
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror}); restore it or remove it from the task") from error
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode()


def _start_digest(start: Path) -> str:
    folder = start if (start / ARRAYS).exists() else start / "artifact"
    try:
        return hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(f"start={start} cannot be read ({error.strerror}); restore it") from error


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return "null" if value is None else f"{value!s:.80}"
