"""Image files -> a CSV of predictions, which a second call resumes where the first was interrupted.

`predictions.csv.json` beside `predictions.csv` names the artifact, box and images of the rows. Rows are written one by
one, so only the last can be incomplete; it is then predicted again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from engine.classifier import Classifier
from engine.errors import ArtifactError, TaskError
from engine.files import unwritable, write_text
from engine.phases import advance, phase
from tuning.data.folders import EXTENSIONS

COLUMNS = ["file", "label", "probability", "error"]


def predict(classifier: Classifier, images: Sequence[Path], out: Path, *, box_uri: str | None = None) -> dict[str, Any]:
    """Write a row for each image: its file, label, the label's probability, and the error where it cannot be read.

    Args:
        classifier: As `Classifier.load` returns it.
        images: Files, and folders to search for images. With a single folder, files are named relative to it.
        out: The CSV. Files that already have a row in it are skipped.
        box_uri: A box that the user names; None: the artifact's own, whose identity must agree.

    Returns:
        `images`, and how many of them were `predicted` in this call and are `unreadable`; `out`; `classes`: images of
        each label.

    Raises:
        TaskError: There is no such file or folder, or no image in it.
        ArtifactError: `out` was made with another artifact, box or folder, is no such CSV, or cannot be written; the
            artifact does not fit the box.
    """
    files = _files(images)
    own = {
        "artifact": classifier.artifact.digest,
        "box": box_uri or classifier.artifact.meta["box"],
        "folder": os.fsencode(_home(images) or Path.cwd()).decode(errors="replace"),
    }
    table, rows = _begun(out, own)
    with table:
        left = [name for name in files if name not in rows]
        if left:
            classifier = classifier.open(box_uri)
            with phase("predicting", len(left)):
                answers = classifier.each(files[name] for name in left)
                for number, (name, answer) in enumerate(zip(left, answers, strict=True), 1):
                    row = ["", "", str(answer)]
                    if not isinstance(answer, TaskError):
                        known = answer.probability == answer.probability
                        row = [answer.label, f"{answer.probability:.6f}" if known else "", ""]
                    _append(table, _line([name, *row]))
                    rows[name] = row[0]
                    advance(number)
    labels = Counter(rows[name] for name in files)
    return {
        "images": len(files),
        "predicted": len(left),
        "unreadable": labels[""],
        "out": str(out),
        "classes": {name: labels[name] for name in classifier.artifact.meta["classes"]},
    }


def _files(images: Sequence[Path]) -> dict[str, Path]:
    """Name -> file, in order: for each folder all images below it that are not hidden, sorted by name."""
    found: dict[str, Path] = {}
    for path in images:
        if not path.exists():
            raise TaskError(f"{path}: there is no such file or folder; name images, or a folder that holds some")
        below = [path]
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            below = [file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        home = _home(images)
        found.update((os.fspath(file.absolute().relative_to(home) if home else file), file) for file in below)
    if not found:
        raise TaskError(
            f"{', '.join(map(str, images))} holds no images; images are files that end in {', '.join(EXTENSIONS)}"
        )
    return found


def _home(images: Sequence[Path]) -> Path | None:
    """The single folder that files are named relative to; None where they keep the names that the user gave."""
    return images[0].absolute() if len(images) == 1 and images[0].is_dir() else None


def _begun(out: Path, own: dict[str, Any]) -> tuple[BinaryIO, dict[str, str]]:
    """The CSV, open after its last complete row, and the label of each file in it; '' for an unreadable file."""
    about = out.with_name(out.name + ".json")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        data = _whole(out.read_bytes() if out.exists() else b"")
        rows = _rows(data, out, about, own)
        table = open(out, "ab")  # noqa: SIM115 (whoever called closes it)
        table.truncate(len(data))
    except OSError as error:
        raise unwritable(out, error) from error
    if not data:
        write_text(about, json.dumps(own, indent=2) + "\n")
        _append(table, _line(COLUMNS))
    return table, rows


def _append(table: BinaryIO, line: bytes) -> None:
    """Append a line and flush it. Raises UnwritableError where the disk is full or read-only."""
    try:
        table.write(line)
        table.flush()
    except OSError as error:
        raise unwritable(Path(table.name), error) from error


def _whole(data: bytes) -> bytes:
    """The data without an incomplete last row: up to the last line end outside of a quoted field."""
    end = len(data)
    while end and (data[end - 1 : end] != b"\n" or data.count(b'"', 0, end) % 2):
        end = data.rfind(b"\n", 0, end - 1) + 1
    return (
        data[:end] if end or _line(COLUMNS).startswith(data) else data
    )  # not our file: it will be refused and left as it is


def _rows(data: bytes, out: Path, about: Path, own: dict[str, Any]) -> dict[str, str]:
    """The label of each file in earlier rows. Raises ArtifactError where these have another origin than `own`."""
    if not data:
        return {}
    try:
        text = data.decode(errors="surrogateescape")  # names of files need not be UTF-8
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if header != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        made = json.loads(about.read_bytes())
        differing = [name for name in own if made[name] != own[name]]
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{out} holds no predictions that can be continued ({error}); name another --out") from None
    if differing:
        raise ArtifactError(f"{out} holds predictions with another {' and '.join(differing)}; name another --out")
    return {row[0]: row[1] for row in rows}


def _line(fields: list[str]) -> bytes:
    """A row; csv.writer of Python 3.11 does not quote a single carriage return."""
    quoted = ('"' + field.replace('"', '""') + '"' if any(c in field for c in ',"\r\n') else field for field in fields)
    return (",".join(quoted) + "\n").encode(errors="surrogateescape")
