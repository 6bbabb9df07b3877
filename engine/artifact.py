"""What a run leaves behind, on disk: artifacts, without pickle, whole or not at all.

An artifact is a folder: `keyhole.json` says what it is, `prompt.safetensors` holds the arrays. It is written under a
temporary name and renamed.
Knows nothing of how the numbers were found.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.core import Array
from engine.errors import ArtifactError
from engine.files import write_text

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
