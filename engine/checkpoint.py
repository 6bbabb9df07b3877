"""Checkpoints: nested dicts and lists of arrays and JSON values in one safetensors file, with a checksum.

Arrays are written without a copy. Files are read as untrusted data: inconsistent ones are refused, `arrays_like` and
`whole_number` check what a state's owner expects, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import ArtifactError
from engine.files import replacing, unwritable
from engine.protocols import Array

FORMAT = "1"
SHARE = 20
"""Least time between two checkpoints, in multiples of the seconds that the last one took."""
LARGEST = 1e30
"""Larger numbers in a state count as damage: their squares would no longer be finite everywhere."""
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError)
"""Errors that reading a damaged state can raise."""
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Types that a state may hold: NumPy's name -> safetensors' name."""


class Checkpoint:
    """A file that is rewritten during a run, less often the longer writing takes.

    Args:
        path: The file; its folder is made when it is first written.
        every_s: Least seconds between two writes.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self.path, self.every_s = path, every_s
        self._ended, self._took = time.monotonic(), 0.0

    @property
    def due(self) -> bool:
        """Whether enough time has passed to write again."""
        return time.monotonic() - self._ended >= max(self.every_s, SHARE * self._took)

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file. Raises UnwritableError where the disk is full or read-only."""
        began = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        save_state(self.path, state)
        self._ended = time.monotonic()
        self._took = self._ended - began


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, completely or not at all.

    Args:
        path: The file.
        state: Nested mappings and sequences of arrays, JSON values and NumPy scalars.

    Raises:
        ArtifactError: An array holds something else than numbers.
        UnwritableError: The disk is full or read-only.
    """
    arrays: list[Array] = []
    text = json.dumps(_stripped(state, arrays))
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "state": text, "sum": _checksum(text, arrays)}}
    offset = 0
    for number, array in enumerate(arrays):
        dtype, end = DTYPES[array.dtype.name], offset + array.nbytes
        header[f"a{number}"] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for array in arrays:
            file.write(_bytes(array))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote. Raises ArtifactError where the file is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            told = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told.get("format") != FORMAT:
            raise ValueError(f"format {told.get('format')!r}, and this version reads {FORMAT!r}")
        inorder = [arrays[f"a{number}"] for number in range(len(arrays))]
        if _checksum(told["state"], inorder) != told["sum"]:
            raise ValueError("its checksum does not agree with its content")
        state = _filled(json.loads(told["state"]), arrays)
        if arrays or not isinstance(state, dict):
            raise ValueError("its arrays and its text do not belong together")
        return state
    except (*DAMAGED, SafetensorError) as error:
        said = error if isinstance(error, (OSError, ValueError, SafetensorError)) else repr(error)
        raise ArtifactError(f"checkpoint {path} cannot be read ({said}); remove it to start anew") from error


def _stripped(value: Any, arrays: list[Array]) -> Any:
    """The value with each array moved into `arrays` and a reference in its place.

    Not a closure: one that calls itself is a reference cycle and would keep all arrays alive until the cyclic collector
    runs.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES:
            raise ArtifactError(f"a state holds an array of {value.dtype}; only numbers can be written")
        arrays.append(np.asarray(value, order="C"))
        return {"__array__": len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _stripped(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stripped(item, arrays) for item in value]
    return value


def _filled(value: Any, arrays: dict[str, Array]) -> Any:
    """The inverse of `_stripped`; it takes each array out of `arrays` once."""
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays.pop(f"a{value['__array__']}")
        return {key: _filled(item, arrays) for key, item in value.items()}
    return [_filled(item, arrays) for item in value] if isinstance(value, list) else value


def _checksum(text: str, arrays: Sequence[Array]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=32)
    for array in arrays:
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: Array) -> memoryview:
    """The array's memory, without a copy."""
    return array.reshape(-1).view(np.uint8).data


# ---------------------------------------------------------------------------------------------------------------------
# Checks for a state's owner


@dataclass(frozen=True)
class Like:
    """The type and shape that an array must have."""

    dtype: str
    shape: tuple[int | None, ...]
    """None: any length."""
    finite: bool = True
    """Whether NaN, infinities and numbers above `LARGEST` are refused."""


def arrays_like(state: Any, wanted: Mapping[str, Like], *, besides: Sequence[str] = ()) -> dict[str, Array]:
    """Copies of a state's arrays.

    Args:
        state: As it was read.
        wanted: All arrays that it must hold.
        besides: Names of what else it must hold.

    Raises ArtifactError where a name is missing or unknown, or an array has another type or shape or is not finite.
    """
    if not isinstance(state, Mapping):
        raise ArtifactError(f"a state is a {type(state).__name__} and not a mapping")
    expected = {*wanted, *besides}
    if expected != state.keys():
        missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
        raise ArtifactError(f"{missing[0]} is missing" if missing else f"{unknown[0]!r:.40} is unknown")
    for name, like in wanted.items():
        value = state[name]
        if not isinstance(value, np.ndarray):
            raise ArtifactError(f"{name} is a {type(value).__name__} and not an array")
        fits = value.ndim == len(like.shape) and all(
            size is None or size == found for size, found in zip(like.shape, value.shape, strict=True)
        )
        if value.dtype.name != like.dtype or not fits:
            shape = tuple("n" if size is None else size for size in like.shape)
            raise ArtifactError(f"{name} is {value.dtype} {value.shape} where {like.dtype} {shape} is expected")
        if like.finite and value.dtype.kind == "f" and not (np.abs(value) <= LARGEST).all():
            raise ArtifactError(f"{name} holds values that are not finite, or absurd")
    return {name: np.array(state[name]) for name in wanted}


def number(value: Any, name: str, *, least: float = 0.0, most: float = np.inf) -> float:
    """A finite number from `least` to `most`. Raises ArtifactError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ArtifactError(f"{name} is {value!r:.40} and not a number")
    if not least <= value <= most or value == np.inf:
        raise ArtifactError(f"{name} is {value!r:.40}, which cannot be")
    return float(value)


def whole_number(value: Any, name: str, *, least: int = 0, most: float = 2**53) -> int:
    """A whole number from `least` to `most`. Raises ArtifactError for anything else."""
    if number(value, name, least=least, most=most) % 1:
        raise ArtifactError(f"{name} is {value} and not a whole number")
    return int(value)
