"""Artifacts, what a run leaves on disk: without pickle, written completely or not at all.

An artifact is a folder: `keyhole.json` describes it, `prompt.safetensors` holds the arrays. It is written under a
temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import ArtifactError, KeyholeError, reason
from engine.files import write_text
from engine.protocols import Array

if TYPE_CHECKING:
    from engine.heads import Head

META, ARRAYS = "keyhole.json", "prompt.safetensors"
MOST_BYTES = {META: 64 * 2**20, ARRAYS: 8 * 2**30}
"""Larger files are not read. A million class names, or contexts of 20,000 classes, are well below."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A tuned prompt with all that using it requires. It is checked (artifact_schema) when loaded and when saved."""

    meta: dict[str, Any]
    """`artifact_schema.Metadata` as plain values."""
    arrays: dict[str, Array]
    """theta `(d,)`; context `(M, W)`, a context per class `(C, M, W)`, or pixels `(3, H, H)`; words, a template in
    UTF-8 bytes; text_features `(C, E)` where only text was tuned; head tensors `head.KIND.FIELD`."""

    def save(self, folder: str | Path) -> Path:
        """Replace the folder, completely or not at all, and return it.

        Raises ArtifactError where the content would be refused when loaded.
        """
        from safetensors.numpy import save

        from engine import artifact_schema as schema

        folder = Path(folder)
        arrays = {name: np.asarray(array, order="C") for name, array in sorted(self.arrays.items())}
        try:
            schema.check_meta(self.meta)
            schema.check_arrays(arrays, self.meta)
        except KeyholeError as error:
            raise ArtifactError(f"the artifact {folder} is not written: {error}") from error
        data = save(arrays)
        told = {"format": schema.FORMAT, "sha256": hashlib.sha256(data).hexdigest(), **self.meta}
        fresh = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        (fresh / ARRAYS).write_bytes(data)
        write_text(fresh / META, json.dumps(told, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read an artifact folder, or a run folder that holds one, without running any code that it names.

        Raises ArtifactError where there is none, or it is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        from engine import artifact_schema as schema

        folder = Path(folder)
        if not (folder / META).exists() and (folder / "artifact" / META).exists():
            folder = folder / "artifact"
        if not (folder / META).exists():
            raise ArtifactError(f"{folder} holds no {META}: name a run folder or an artifact that `keyhole tune` wrote")
        try:
            meta = json.loads(_bytes(folder / META))
            if not isinstance(meta, dict):
                raise ValueError(f"{META} is a {type(meta).__name__}, not an object")
            version, checksum = meta.pop("format", None), meta.pop("sha256", None)
            if version != schema.FORMAT:
                raise ValueError(f"it has format {version!r:.20}, this version of keyhole reads {schema.FORMAT}")
            schema.check_meta(meta)
            data = _bytes(folder / ARRAYS)
            if hashlib.sha256(data).hexdigest() != checksum:
                raise ValueError(f"{ARRAYS} is not the file whose checksum stands in {META}")
            arrays = load(data)
            schema.check_arrays(arrays, meta)
        # safetensors raises KeyError and TypeError, too, for a damaged header.
        except (OSError, ValueError, KeyError, TypeError, RecursionError, KeyholeError, SafetensorError) as error:
            raise ArtifactError(
                f"{folder} cannot be used: {reason(error)}; copy the whole folder anew, or tune again"
            ) from error
        return cls(meta=meta, arrays=arrays)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its metadata and arrays."""
        arrays = {
            name: [array.dtype.str, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
            for name, array in self.arrays.items()
        }
        return hashlib.sha256(json.dumps([self.meta, arrays], sort_keys=True).encode()).hexdigest()

    def head(self) -> Head | None:
        """The trained head that it holds, or None."""
        from engine.artifact_schema import head_of

        return head_of(self.arrays, len(self.meta["classes"]))

    def words(self) -> str | None:
        """The template in words that it holds, or None."""
        from engine.artifact_schema import words_of

        return words_of(self.arrays["words"]) if "words" in self.arrays else None


def _bytes(path: Path) -> bytes:
    """A file's content. Raises OSError where it is no ordinary file, ValueError where it is too large."""
    if (size := path.stat().st_size) > MOST_BYTES[path.name]:
        raise ValueError(f"{path.name} has {size} bytes, more than any artifact")
    if not path.is_file():
        raise OSError(f"{path.name} is no file")
    return path.read_bytes()
