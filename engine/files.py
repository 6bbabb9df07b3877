"""Files that are written completely or not at all.

A file is written under a temporary name beside it, flushed to disk and renamed: after a killed process, a full disk or
a power cut, the earlier version is still there. Temporary files are removed after an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.errors import ArtifactError


class UnwritableError(ArtifactError):
    """A file or folder on a disk that is full, read-only or not the user's."""


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file. Raises UnwritableError where the disk is full or read-only."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file. Raises UnwritableError where the disk is full or read-only."""
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that replaces `path` when the block ends without an error.

    Raises UnwritableError where the disk is full or read-only.
    """
    fresh = path.with_name(path.name + ".tmp")
    try:
        with open(fresh, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def append_lines(path: Path, lines: list[str]) -> None:
    """Append lines to a UTF-8 file and flush it to disk. Raises UnwritableError where the disk is full or read-only."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UnwritableError:
    """The error for a file or folder that could not be written."""
    return UnwritableError(f"{path} cannot be written ({error.strerror or error}); make room or make it writable")


def _sync(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
