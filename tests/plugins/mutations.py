"""Damage by seed: bytes, JSON trees and dicts of arrays that came to harm on their way. No input is changed in place.

Each function draws one kind of damage and returns its name, for the message of a failed test, with what is left.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**40, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x00", "é" * 200,
    "../../etc/passwd", "os:getcwd", "a.b:c", "{}", "{0.__class__}", [], [[]], [None], {}, {"": None}, "9" * 5000,
)  # fmt: skip
"""What a JSON value may be in place of another."""
DEEP = 5_000
"""Levels of nesting: past Python's recursion limit."""


def mutated_bytes(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A file that was cut, flipped, overwritten, padded or replaced."""
    at = int(rng.integers(len(data)))
    match rng.choice(["flip", "flip-head", "cut", "zero", "insert", "repeat", "empty", "noise", "utf-16"]):
        case "flip":
            kind, out = f"bit flipped at {at}", _flipped(data, at, rng)
        case "flip-head":  # where lengths and headers are
            at %= 64
            kind, out = f"bit flipped at {at}", _flipped(data, at, rng)
        case "cut":
            kind, out = f"cut at {at}", data[:at]
        case "zero":
            kind, out = f"zeros from {at}", data[:at] + bytes(len(data[at:]))
        case "insert":
            kind, out = f"bytes inserted at {at}", data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]
        case "repeat":
            kind, out = "written twice", data + data
        case "empty":
            kind, out = "empty", b""
        case "noise":
            kind, out = "noise", rng.bytes(len(data))
        case _:
            kind, out = "in UTF-16", data.decode("latin-1").encode("utf-16")
    return kind, out


def mutated_json(tree: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """A tree with one node removed, renamed, doubled, nested, reordered or made another value; now and then its root.

    `json.dumps` cannot write what is nested deeply: use `dumped`.
    """
    tree = copy.deepcopy(tree)
    spots = list(_spots(tree))
    if rng.random() < 0.05 or not spots:
        value = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
        return f"the root is {value!r:.40}", value
    home, key, path = spots[int(rng.integers(len(spots)))]
    value = home[key]
    match rng.choice(["remove", "odd", "odd", "odd", "rename", "nest", "deep", "shuffle", "text", "swap"]):
        case "remove":
            kind = "removed"
            del home[key]
        case "rename":
            kind = "renamed"
            del home[key]
            home.append(value) if isinstance(home, list) else home.update({f"{key}_": value})
        case "nest":
            kind, home[key] = "in a list", [value]
        case "deep":
            kind, home[key] = "nested deeply", Deep(DEEP)
        case "shuffle" if isinstance(value, list) and len(value) > 1:
            kind, home[key] = "rolled by one", value[1:] + value[:1]
        case "text":
            kind, home[key] = "as text", str(value)
        case "swap":
            other_home, other_key, other = spots[int(rng.integers(len(spots)))]
            kind, home[key] = f"a copy of {other}", copy.deepcopy(other_home[other_key])
        case _:
            odd = ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
            kind, home[key] = f"is {odd!r:.40}", odd
    return f"{path} {kind}", tree


class Deep:
    """Stands in a tree for so many lists inside one another."""

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def __deepcopy__(self, memo: dict) -> Deep:
        return self


def dumped(tree: Any) -> str:
    """JSON text of a tree from `mutated_json`."""
    mark = '"\\u0001deep"'
    text = json.dumps(tree, default=lambda deep: "\x01deep")
    return text.replace(mark, "[" * DEEP + "]" * DEEP)


def mutated_arrays(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[str, dict[str, np.ndarray]]:
    """A dict with one array removed, renamed, added, exchanged with another, or of other numbers, shape or dtype."""
    out = dict(arrays)
    name = sorted(out)[int(rng.integers(len(out)))]
    array = out[name]
    kinds = ["remove", "rename", "add", "nan", "inf", "huge", "empty", "longer", "shorter", "axis", "flat", "dtype"]
    kind = str(rng.choice([*kinds, "swap", "transpose"]))
    match kind:
        case "remove":
            del out[name]
        case "rename":
            out[f"{name}{rng.choice(['_', '.', '2'])}"] = out.pop(name)
        case "add":
            out[str(rng.choice(["extra", "pixels", "words", "context", "head.linear.weight", "head.x", "../x"]))] = (
                np.zeros(int(rng.integers(1, 5)), np.float32)
            )
        case "nan" | "inf" | "huge" if array.dtype.kind == "f" and array.size:
            out[name] = array.copy()
            spot = rng.integers(array.size)
            out[name].reshape(-1)[spot] = {"nan": np.nan, "inf": -np.inf, "huge": np.finfo(array.dtype).max}[kind]
        case "empty":
            out[name] = array.reshape(-1)[:0]
        case "longer":
            out[name] = np.concatenate([np.atleast_1d(array)] * 2)
        case "shorter" if array.ndim:
            out[name] = array[:-1]
        case "axis":
            out[name] = array[None]
        case "flat":
            out[name] = array.reshape(-1) if array.ndim != 1 else array.reshape(1, 1, -1, 1)
        case "swap":
            other = sorted(out)[int(rng.integers(len(out)))]
            out[name], out[other] = out[other], out[name]
            kind = f"exchanged with {other}"
        case "transpose":
            out[name] = np.ascontiguousarray(array.T)
        case _:
            dtype = np.dtype(str(rng.choice(["float64", "float16", "int8", "int64", "uint8", "bool"])))
            with np.errstate(all="ignore"):
                out[name] = array.astype(dtype)
            kind = f"as {dtype}"
    return f"{name}: {kind}", out


def _flipped(data: bytes, at: int, rng: np.random.Generator) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


def _spots(tree: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every place of a tree: what holds it, its key there, and its path in words."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key, f"{path}.{key}"
        yield from _spots(value, f"{path}.{key}")
