"""Settings of dataclasses: types as annotated, numbers in the ranges that the annotations declare.

@dataclass(frozen=True, kw_only=True)
class Method:
    k: Count = 2
    radius: Positive = 0.3

    def __post_init__(self) -> None:
        check(self)

"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from engine.errors import RecipeError, shown

LONGEST_NAME, LONGEST_URI = 100, 1000
"""Most characters of a setting that is a word, and of one that may be a path."""


@dataclass(frozen=True)
class Range:
    """The finite numbers from `least` to `most`."""

    least: float
    most: float
    below: bool = False
    """Whether `most` itself is excluded."""
    or_zero: bool = False
    """Whether 0 is allowed too."""

    def __contains__(self, value: float) -> bool:
        inside = self.least <= value < self.most if self.below else self.least <= value <= self.most
        return inside or (self.or_zero and value == 0)

    def __str__(self) -> str:
        if self.least == TINY:
            words = f"a positive number, {TINY:g} to {self.most:g}"
        else:
            words = f"at least {_number(self.least)} and {'below' if self.below else 'at most'} {_number(self.most)}"
        return f"0 or {words}" if self.or_zero else words


TINY, HUGE, MANY = 1e-9, 1e9, 10_000
Count = Annotated[int, Range(1, MANY)]
"""A number of things held at once."""
Steps = Annotated[int, Range(1, 10**9)]
"""A number of things that come one after another."""
Positive = Annotated[float, Range(TINY, HUGE)]
PositiveOrZero = Annotated[float, Range(TINY, HUGE, or_zero=True)]
"""For settings where 0 means something else than a very small number."""
Weight = Annotated[float, Range(0.0, HUGE)]
Share = Annotated[float, Range(0.0, 1.0)]
ShareBelowOne = Annotated[float, Range(0.0, 1.0, below=True)]
Exponent = Annotated[float, Range(0.0, 10.0)]
Population = Annotated[int, Range(4, MANY)]
"""Of CMA-ES, which needs at least four."""
Seed = Annotated[int, Range(0, 2**63 - 1)]


def check(settings: Any, where: str = "") -> None:
    """Raises RecipeError for a number of a dataclass, or in a tuple of it, that is not finite or not in its range.

    `where` precedes the field's name in the message.
    """
    kind: type = type(settings)
    declared = ranges(kind)
    for field in dataclasses.fields(kind):
        name, limits = field.name, declared.get(field.name)
        found = getattr(settings, name)
        for value in found if isinstance(found, tuple) else (found,):
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if limits is None and not (isinstance(value, int) or math.isfinite(value)):
                raise RecipeError(f"{where}{name}={value} must be finite")
            if limits is not None and value not in limits:
                raise RecipeError(f"{where}{name}={shown(value)} must be {limits}")


def typed(value: Any, kind: Any, name: str, longest: int = LONGEST_NAME) -> Any:
    """A value of a field's type. Whole numbers become floats where needed; nothing else is converted.

    >>> typed(1, float | None, "radius")
    1.0

    Args:
        value: As a user gave it.
        kind: A class, a union of classes, or anything else (`Any`, a protocol's alias), which allows every value.
        name: For messages.
        longest: Most characters of a text.

    Raises RecipeError for another type, and for text that is too long or has control characters.
    """
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = [typing.get_origin(each) or each for each in (typing.get_args(kind) if union else (kind,))]
    if Any in kinds or not all(isinstance(each, type) for each in kinds):
        return value
    if isinstance(value, bool):
        allowed = bool in kinds
    else:
        allowed = isinstance(value, tuple(kinds)) or (float in kinds and isinstance(value, int))
    if not allowed:
        names = " or ".join(_NAMES.get(each, each.__name__) for each in kinds)
        raise RecipeError(f"{name}={shown(value)} is a {type(value).__name__}; it must be {names}")
    if isinstance(value, str) and (len(value) > longest or any(ord(c) < 32 or c == "\x7f" for c in value)):
        raise RecipeError(f"{name}={shown(value)} must be one line of at most {longest} characters")
    if isinstance(value, int) and int not in kinds and bool not in kinds:
        try:
            return float(value)
        except OverflowError:
            raise RecipeError(f"{name}={shown(value)} is too large a number") from None
    return value


_NAMES: dict[Any, str] = {types.NoneType: "null", Mapping: "a mapping"}


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def ranges(kind: type) -> dict[str, Range]:
    """The ranges that the fields of a dataclass declare."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {field.name: _range_of(hints[field.name]) for field in dataclasses.fields(kind)}
    return {name: limits for name, limits in found.items() if limits is not None}


def _range_of(hint: Any) -> Range | None:
    if typing.get_origin(hint) is Annotated:
        return next((each for each in hint.__metadata__ if isinstance(each, Range)), None)
    return next((found for each in typing.get_args(hint) if (found := _range_of(each)) is not None), None)
