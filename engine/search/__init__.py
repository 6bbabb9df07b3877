"""The searches, by name. Each is a table entry "module:Class" that is imported when first made.

Knows nothing of boxes, tasks or budgets.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from engine.errors import RecipeError, nearest, shown
from engine.protocols import Method
from engine.settings import typed

METHODS: dict[str, str] = {
    "sketch": "engine.search.sketch.search:Sketch",
    "momentum": "engine.search.momentum:Momentum",
    "cbbt": "engine.search.published_rules:Cbbt",
    "spsa-gc": "engine.search.published_rules:SpsaGc",
    "bar": "engine.search.published_rules:Bar",
    "zip": "engine.search.published_rules:Zip",
    "sharpzo": "engine.search.sharpzo:SharpZo",
    "bpt-vlm": "engine.search.sharpzo:BptVlm",
    "craft": "engine.search.craft:Craft",
    "words": "engine.search.word_evolution:Words",
}
"""Name -> "module:Class" of a frozen dataclass with `needs` and `start`."""

FAMILY = "nevergrad"
"""`nevergrad:NAME` is any optimizer of Nevergrad's registry."""


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method by its name in `METHODS`, as `nevergrad:NAME`, or as `package.module:Class`, with its options.

    Raises RecipeError for a name or an option that is unknown, or a value of the wrong type.

    Example:
        >>> make("momentum", {"k": 4, "radius": 0.1}).k
        4
    """
    fixed: dict[str, Any] = {}
    if name.startswith(f"{FAMILY}:"):
        path, fixed = "engine.search.nevergrad:Nevergrad", {"name": name.partition(":")[2]}
    elif name in METHODS:
        path = METHODS[name]
    elif ":" in name:
        path = name
    else:
        hint = nearest(name, [*METHODS, f"{FAMILY}:CMA"])
        raise RecipeError(
            f"method {shown(name)} is unknown{hint}; there are {', '.join(METHODS)}, nevergrad:NAME and "
            "package.module:Class"
        )
    kind: Any = _resolve(name, path)
    if not isinstance(kind, type):
        raise RecipeError(f"method {name!r} is {kind!r}, not a class; give package.module:Class")
    given = dict(options or {})
    if not dataclasses.is_dataclass(kind):
        if given:
            raise RecipeError(f"method {name!r} takes no options, as it is not a dataclass; got {shown(list(given))}")
        return _made(name, kind, {})
    hints = typing.get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init and f.name not in fixed}
    for key, value in given.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise RecipeError(
                f"method {name!r} has no option {shown(key)}{nearest(str(key), fields)}; its options are {known}"
            )
        given[key] = typed(value, fields[key], f"method.{key}")
    return _made(name, kind, {**fixed, **given})


def _made(name: str, kind: type, settings: Mapping[str, Any]) -> Method:
    try:
        inspect.signature(kind).bind(**settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method {name!r} cannot be made: {error}; give its options as method.NAME=value") from None
    made = kind(**settings)
    if not isinstance(made, Method):
        raise RecipeError(f"method {name!r} is no search method: it needs `needs` and `start` (docs/methods.md)")
    return made


def options_of(name: str, method: Method) -> dict[str, Any]:
    """All options of a method with their values, as `make(name, ...)` takes them; none that YAML cannot hold.

    >>> options_of("nevergrad:CMA", make("nevergrad:CMA"))
    {'sigma': 1.0, 'batch': 20, 'recommend': 'best'}
    """
    fixed = {"name"} if name.startswith(f"{FAMILY}:") else set()
    fields: tuple[Any, ...] = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    values: dict[str, Any] = {f.name: getattr(method, f.name) for f in fields if f.init and f.name not in fixed}
    return {key: value for key, value in values.items() if value is None or isinstance(value, bool | int | float | str)}


def describe() -> list[dict[str, Any]]:
    """What `keyhole list methods` shows: name, a line, options with defaults, and what a box must give and accept."""
    rows = []
    for name, path in [*METHODS.items(), (f"{FAMILY}:NAME", "engine.search.nevergrad:Nevergrad")]:
        kind = _resolve(name, path)
        rows.append(
            {
                "name": name,
                "about": (kind.__doc__ or "").strip().splitlines()[0],
                "options": {
                    f.name: f.default
                    for f in dataclasses.fields(kind)
                    if f.init and f.default is not dataclasses.MISSING
                },
                "gives": sorted(kind.needs.gives),
                "accepts": sorted(kind.needs.accepts),
                "table": kind.needs.table,
            }
        )
    return rows


def _resolve(name: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise RecipeError(
            f"method {shown(name)} cannot be loaded: {error}; give a name of `keyhole list methods` or "
            "package.module:Class"
        ) from error
