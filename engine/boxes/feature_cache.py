"""Image features on disk, shared by all trials and workers of a machine: an image is encoded once.

An entry holds the features of one block of images, as staging encodes them. The bits of a feature may depend on the
rest of its batch, so blocks and not single images are cached: the same block has the same bits from disk and from the
model. Entries are named by a hash of all that determines the bits (weights, preprocessing, device, builds, this code, a
canary's bits) and of the images' content. They are written under a temporary name and renamed, and read with a
checksum; damaged ones are encoded again.

The folder is the one named by KEYHOLE_CACHE (`off`: none), else in the platform's cache folder. It holds at most
`LIMIT_BYTES`; the least recently used entries are removed first. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import platform
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from engine.protocols import Array

LIMIT_BYTES = 2 * 2**30
"""For all entries together: features of a million images with 512 numbers each."""
VARIABLE = "KEYHOLE_CACHE"
_CHECKSUM = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """The folder of the cache; None where KEYHOLE_CACHE=off."""
    named = os.environ.get(VARIABLE, "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser() / "features"
    if sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "keyhole" / "features"


def cache_bytes(folder: Path) -> int:
    """Size of all entries, in bytes."""
    return sum(size for _, size, _ in _entries(folder))


class FeatureCache:
    """Features by block, for one model on this machine.

    Args:
        folder: The folder of the entries; made when the first is written.
        about: What determines a feature's bits besides the images and the `environment`, as plain JSON values.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._about = json.dumps({**environment(), **about}, sort_keys=True)
        self._writable = True

    def may_hold(self, first: str) -> bool:
        """Whether there may be an entry of a block that begins with the image of this digest."""
        return self._path([first]).parent.is_dir()

    def load(self, contents: Sequence[str]) -> Array | None:
        """`(n, E)` float32 features of a block of images, by their digests; None where no sound entry exists."""
        path = self._path(contents)
        try:
            data = path.read_bytes()
            os.utime(path)  # the time of last use, for `trim`
        except OSError:
            return None
        if hashlib.sha256(data[_CHECKSUM:]).digest() != data[:_CHECKSUM]:
            logger.warning("cache: %s is damaged; encoding these images anew", path)
            return None
        features = np.load(io.BytesIO(data[_CHECKSUM:]), allow_pickle=False)
        return features if len(features) == len(contents) else None

    def save(self, contents: Sequence[str], features: Array) -> None:
        """Write the `(n, E)` features of a block, by the images' digests. A failure to write is logged once."""
        if not self._writable:
            return
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(features, np.float32), allow_pickle=False)
        data, path = buffer.getvalue(), self._path(contents)
        fresh = path.with_name(f".{uuid.uuid4().hex}")  # unique: several workers may write the same entry
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(fresh, path)
        except OSError as error:
            self._writable = False
            logger.warning(
                "cache: %s cannot be written (%s); images are encoded anew in each process. Name another folder in %s",
                self.folder, error.strerror or error, VARIABLE,
            )  # fmt: skip
            with suppress(OSError):
                fresh.unlink()

    def trim(self) -> None:
        """Where the cache exceeds its limit, remove the least recently used entries down to four fifths of it."""
        entries = sorted(_entries(self.folder))
        left = sum(size for _, size, _ in entries)
        if left <= LIMIT_BYTES:
            return
        for _, size, path in entries:
            if left <= 0.8 * LIMIT_BYTES:
                return
            with suppress(OSError):  # another process may have removed it
                path.unlink()
            left -= size

    def _path(self, contents: Sequence[str]) -> Path:
        # One folder for all blocks that begin with an image, for `may_hold`.
        first, whole = (
            hashlib.sha256("\n".join([self._about, *some]).encode()).hexdigest() for some in (contents[:1], contents)
        )
        return self.folder / first[:16] / whole


def environment() -> dict[str, Any]:
    """What determines a feature's bits in this process: builds, processor, threads and the code, as JSON values."""
    import open_clip
    import PIL
    import torch

    from engine import images, preprocessing
    from engine.boxes.clip import box, image_tower, transformer_blocks

    code = hashlib.sha256()
    for module in (box, image_tower, transformer_blocks, images, preprocessing):
        code.update(Path(str(module.__file__)).read_bytes())
    return {
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "processor": platform.machine() + torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "code": code.hexdigest(),
    }


def _entries(folder: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, size and path of each entry that still exists."""
    found = []
    for path in folder.glob("*/*"):
        try:
            state = path.stat()
        except OSError:
            continue
        found.append((state.st_mtime, state.st_size, path))
    return found
