"""Image features on disk, shared by all trials and workers of a machine: an image is encoded once.

An entry holds the features of one block of images, the blocks that staging encodes anyway. The bits of a feature may
depend on what stands beside it in a batch, so a block and not an image is what can be kept without changing a number:
the same block gives the same bits, from the disk or from the model. Entries are named by a hash of all that the bits
depend on (weights, preprocessing, device, builds, this code, the bits of a canary) and of the images' content. They
are written under another name and renamed, read with a checksum, and whatever cannot be read is encoded anew.

Where: the folder named by KEYHOLE_CACHE (`off`: nowhere), else the platform's folder for caches. At most
`LIMIT_BYTES`, the entries used longest ago going first. `rm -r` is safe at any time.

Knows nothing of models, of how features are computed, or of ledgers.
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
"""Of all entries together; a million images' features of 512 numbers."""
VARIABLE = "KEYHOLE_CACHE"
_CHECKSUM = hashlib.sha256().digest_size

logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Where features are kept; None where KEYHOLE_CACHE=off."""
    named = os.environ.get(VARIABLE, "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser() / "features"
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "keyhole" / "features"


def cache_bytes(folder: Path) -> int:
    """Bytes of all entries."""
    return sum(size for _, size, _ in _entries(folder))


class FeatureCache:
    """Features by block, for one model as it computes here.

    Args:
        folder: Where entries lie; made when the first is written.
        about: All that the bits of a feature depend on besides the images, as plain JSON values.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._about = json.dumps({**environment(), **about}, sort_keys=True)
        self._writable = True

    def may_hold(self, first: str) -> bool:
        """Whether there is, or was, an entry of a block that begins with this image."""
        return self._path([first]).parent.is_dir()

    def load(self, contents: Sequence[str]) -> Array | None:
        """`(n, E)` float32 of a block of images, by what tells them apart; None where there is no sound entry."""
        path = self._path(contents)
        try:
            data = path.read_bytes()
            os.utime(path)  # used now: what `trim` removes last
        except OSError:
            return None
        if hashlib.sha256(data[_CHECKSUM:]).digest() != data[:_CHECKSUM]:
            logger.warning("cache: %s is damaged; encoding these images anew", path)
            return None
        features = np.load(io.BytesIO(data[_CHECKSUM:]), allow_pickle=False)
        return features if len(features) == len(contents) else None

    def save(self, contents: Sequence[str], features: Array) -> None:
        """Keep a block's features. A folder that cannot be written is said once, and is no error."""
        if not self._writable:
            return
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(features, np.float32), allow_pickle=False)
        data, path = buffer.getvalue(), self._path(contents)
        fresh = path.with_name(f".{uuid.uuid4().hex}")  # a name of its own: several workers may write one entry
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
        """Remove the entries used longest ago, down to four fifths of the limit, where there is more than that."""
        entries = sorted(_entries(self.folder))
        left = sum(size for _, size, _ in entries)
        if left <= LIMIT_BYTES:
            return
        for _, size, path in entries:
            if left <= 0.8 * LIMIT_BYTES:
                return
            with suppress(OSError):  # another process may have been quicker
                path.unlink()
            left -= size

    def _path(self, contents: Sequence[str]) -> Path:
        # A folder for all blocks that begin with one image: `may_hold` looks for it.
        first, whole = (
            hashlib.sha256("\n".join([self._about, *some]).encode()).hexdigest() for some in (contents[:1], contents)
        )
        return self.folder / first[:16] / whole


def environment() -> dict[str, Any]:
    """What in this process the bits of a feature depend on: builds, processor, threads, and this code itself."""
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
    """Time of last use, size and path of each entry; of those that vanish meanwhile, none."""
    found = []
    for path in folder.glob("*/*"):
        try:
            state = path.stat()
        except OSError:
            continue
        found.append((state.st_mtime, state.st_size, path))
    return found
