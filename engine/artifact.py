"""What a run leaves behind, on disk: artifacts and checkpoints, without pickle, whole or not at all.

An artifact is a folder: `keyhole.json` says what it is, `prompt.safetensors` holds the arrays. A checkpoint is one
`.npz` file whose JSON part describes the nesting. Everything is written under a temporary name and renamed.
Knows nothing of how the numbers were found.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.core import Array
from engine.errors import ArtifactError

FORMAT = 1
META, ARRAYS = "keyhole.json", "prompt.safetensors"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A tuned prompt with what one must know to use it."""

    meta: dict[str, Any]
    """Box URI and identity, classes, template, parametrization, method, ledger, metrics, contains, licence."""
    arrays: dict[str, Array]
    """theta `(d,)`; context `(M, W)`, a context per class `(C, M, W)`, or pixels; text_features `(C, E)` where only
    text was tuned; head tensors."""

    def save(self, folder: str | Path) -> Path:
        """Write the folder, whole or not at all, in place of an earlier one."""
        from safetensors.numpy import save

        folder = Path(folder)
        fresh = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        arrays = {name: np.ascontiguousarray(array) for name, array in sorted(self.arrays.items())}
        (fresh / ARRAYS).write_bytes(save(arrays))
        write_text(fresh / META, json.dumps({"format": FORMAT, **self.meta}, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Artifact:
        """Read an artifact folder, or a run folder that holds one. Raises ArtifactError for anything else."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        if not (folder / META).exists() and (folder / "artifact" / META).exists():
            folder = folder / "artifact"
        if not (folder / META).exists():
            raise ArtifactError(f"{folder} holds no {META}: name a run folder or an artifact that `keyhole tune` wrote")
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            arrays = load((folder / ARRAYS).read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} cannot be read ({error}); is it a whole copy of the folder?") from error
        version = meta.pop("format", None)
        if version != FORMAT:
            raise ArtifactError(f"{folder} has format {version}, this version reads {FORMAT}; update keyhole")
        return cls(meta=meta, arrays=arrays)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary name beside it, flushed to disk, then renamed."""
    fresh = path.with_name(path.name + ".tmp")
    with open(fresh, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of arrays and JSON values as one `.npz` file."""
    arrays: dict[str, Array] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return {"__array__": f"a{len(arrays) - 1}"}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {str(key): strip(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [strip(item) for item in value]
        return value

    text = json.dumps(strip(state))
    buffer = io.BytesIO()
    np.savez(buffer, json=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises ArtifactError for a file that is missing, cut short or of another kind."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return arrays[value["__array__"]] if "__array__" in value else {k: fill(v) for k, v in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return fill(json.loads(arrays.pop("json").tobytes().decode()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"checkpoint {path} cannot be read ({error}); remove it to start anew") from error
