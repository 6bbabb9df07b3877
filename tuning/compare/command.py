"""A comparison as the command line that makes it again.

Flags where they say it, `key=value` words for the rest; `make_comparison` reads both back to the same settings.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tuning.compare.comparison import Comparison, split_list
from tuning.compare.sweep_spaces import KINDS

ALWAYS = ("tasks", "methods", "boxes", "seeds", "shots", "budget")
"""Said also where they are the defaults, which another version may have changed."""
FLAGS = ("base_to_new", "shift", "samples", "searcher", "asha", "data", "title")
LISTS = {"tasks": True, "boxes": True, "shift": True, "methods": False}
"""Lists of words, and whether they are URIs, which may hold commas."""


def words_of(comparison: Comparison) -> list[str]:
    """The words after `keyhole compare`, without where it writes."""
    found: list[str] = []
    rest: dict[str, Any] = {}
    for field in fields(Comparison):
        name, value = field.name, getattr(comparison, field.name)
        default = {} if name in ("recipe", "gate") else getattr(Comparison, name)
        if name == "recipe" or (value == default and name not in ALWAYS):
            continue
        text = _flag(name, value) if name in (*ALWAYS, *FLAGS) else None
        if text is None:
            rest[name] = value
        else:
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    rest = {name: comparison.as_dict()[name] for name in rest} | dict(_dotted(comparison.recipe))
    return found + [f"{name}={_yaml(value)}" for name, value in rest.items()]


def command_of(comparison: Comparison, out: str, parallel: int | None = None) -> str:
    """The whole command, quoted for a shell."""
    words = ["keyhole", "compare", *words_of(comparison)]
    words += ["--parallel", str(parallel)] if parallel is not None else []
    return shlex.join([*words, "--out", out])


def uses_files_of(comparison: Comparison, folder: Path) -> bool:
    """Whether a setting names, by a relative path, something that lies in this folder."""
    return any(
        part and not os.path.isabs(part) and os.path.exists(folder / part)  # false, too, for what can be no path
        for name in ("tasks", "boxes", "shift", "data", "recipe")
        for text in _strings(comparison.as_dict()[name])
        for part in re.split(r"[:,]", text.partition("?")[0])
    )


def _flag(name: str, value: Any) -> str | None:
    """The value as a flag says it; None where no flag can."""
    if name in LISTS:
        if not all(isinstance(item, str) for item in value):
            return None
        text = ",".join(value)
        return text if split_list(text, uris=LISTS[name]) == tuple(value) else None
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).removesuffix(".0")


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted path; search spaces stay whole."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and not (len(value) == 1 and next(iter(value)) in KINDS):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
