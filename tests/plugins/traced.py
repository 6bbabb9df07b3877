"""An image source that notes who read it, importable by Ray workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.boxes.toy import ToyImages
from engine.protocols import Array


@dataclass(frozen=True, slots=True)
class Traced:
    """Toy images; each reading adds a byte to a file `PID-rows` in a folder."""

    images: ToyImages
    folder: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: Sequence[int]) -> list[Array]:
        with open(Path(self.folder, f"{os.getpid()}-{len(rows)}"), "ab") as file:
            file.write(b".")
        return self.images.read(rows)
