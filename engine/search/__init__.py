"""The methods, by name. Each is a table entry "module:Class" that is imported when first made.

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
    "zero-shot": "engine.search.no_search:ZeroShot",
    "zero-shot:ensemble": "engine.search.no_search:Ensemble",
}
"""Name -> "module:Class" of a `Method`: a frozen dataclass, most of them a `SearchMethod` with `needs` and `start`."""

FAMILIES: dict[str, str] = {
    "nevergrad": "engine.search.nevergrad:Nevergrad",
    "head": "engine.search.no_search:HeadAlone",
    "ceiling": "tuning.white_box.ceiling:Ceiling",
}
"""`FAMILY:NAME`, for which the class takes `name`: any optimizer of Nevergrad's registry, a head, a white-box one."""


def make(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method by its name in `METHODS`, as `nevergrad:NAME`, or as `package.module:Class`, with its options.

    Raises RecipeError for a name or an option that is unknown, or a value of the wrong type.

    Example:
        >>> make("momentum", {"k": 4, "radius": 0.1}).k
        4
    """
    found, fixed = _kind(name)
    kind: Any = found
    given = dict(options or {})
    if not dataclasses.is_dataclass(found):
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


def _kind(name: str) -> tuple[type, dict[str, str]]:
    """The class of a method, and what its name settles."""
    family, _, rest = name.partition(":")
    fixed: dict[str, str] = {}
    if name in METHODS:
        path = METHODS[name]
    elif family in FAMILIES and ":" in name:
        path, fixed = FAMILIES[family], {"name": rest}
    elif ":" in name and family not in METHODS:
        path = name
    else:
        raise RecipeError(
            f"method {shown(name)} is unknown{nearest(name, [*METHODS, 'nevergrad:CMA'])}; there are "
            f"{', '.join(METHODS)}, {', '.join(f'{each}:NAME' for each in FAMILIES)} and package.module:Class"
        )
    kind: Any = _resolve(name, path)
    if not isinstance(kind, type):
        raise RecipeError(f"method {name!r} is {kind!r}, not a class; give package.module:Class")
    return kind, fixed


def searches(name: str) -> bool:
    """Whether the method of this name searches a prompt: what others do alone stands beside it, not against it.

    Raises RecipeError for a name that is unknown.
    """
    from engine.tuning_loop import SearchMethod

    return issubclass(_kind(name)[0], SearchMethod)


def option_names(name: str) -> frozenset[str]:
    """The options of a method. Raises RecipeError for a name that is unknown."""
    made: Any = make(name)
    fields = dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()
    return frozenset(field.name for field in fields if field.init) - _kind(name)[1].keys()


def _made(name: str, kind: type, settings: Mapping[str, Any]) -> Method:
    try:
        inspect.signature(kind).bind(**settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"method {name!r} cannot be made: {error}; give its options as method.NAME=value") from None
    made = kind(**settings)
    if not isinstance(made, Method):
        raise RecipeError(
            f"method {name!r} is no method: inherit engine.tuning_loop.SearchMethod, and give it `start` "
            "(docs/methods.md)"
        )
    return made


def options_of(name: str, method: Method) -> dict[str, Any]:
    """All options of a method with their values, as `make(name, ...)` takes them; none that YAML cannot hold.

    >>> options_of("nevergrad:CMA", make("nevergrad:CMA"))
    {'sigma': 1.0, 'batch': 20, 'recommend': 'best'}
    """
    fixed = _kind(name)[1]
    fields: tuple[Any, ...] = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    values: dict[str, Any] = {f.name: getattr(method, f.name) for f in fields if f.init and f.name not in fixed}
    return {key: value for key, value in values.items() if value is None or isinstance(value, bool | int | float | str)}


def describe() -> list[dict[str, Any]]:
    """What `keyhole list methods` shows: name, a line, options with defaults, and what a box must give and accept."""
    from engine.heads import ABOUT, HEADS

    rows = [_row(name, _kind(name)[0]) for name in METHODS]
    rows.insert(list(METHODS).index("zero-shot"), _row("nevergrad:NAME", _kind("nevergrad:CMA")[0]))
    heads = [_row(f"head:{name}", make(f"head:{name}"), ABOUT.get(name)) for name in HEADS]
    return [*rows, *heads, _row("ceiling:coop", _kind("ceiling:coop")[0])]


def _row(name: str, method: Any, about: str | None = None) -> dict[str, Any]:
    """Of a method, or of the class of one."""
    return {
        "name": name,
        "about": about or (method.__doc__ or "").strip().splitlines()[0],
        "options": {
            f.name: f.default for f in dataclasses.fields(method) if f.init and f.default is not dataclasses.MISSING
        },
        "gives": sorted(method.needs.gives),
        "accepts": sorted(method.needs.accepts),
        "table": method.needs.table,
    }


def _resolve(name: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise RecipeError(
            f"method {shown(name)} cannot be loaded: {error}; give a name of `keyhole list methods` or "
            "package.module:Class"
        ) from error
