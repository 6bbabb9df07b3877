"""Search spaces in a recipe: a mapping of one key where a value stands otherwise.

`{grid: [...]}` is compared: every value is a row of the table. `{choice: [...]}`, `{loguniform: [low, high]}` and
`{uniform: [low, high]}` are searched: one value is chosen on validation before the comparison, its cost apart.
Knows nothing of Ray and of what the settings mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import RecipeError, shown
from engine.random_streams import Purpose, rng
from engine.settings import MANY

KINDS = ("grid", "choice", "loguniform", "uniform")


@dataclass(frozen=True)
class Space:
    """The values that one setting may take."""

    kind: str
    values: tuple[Any, ...]
    """All values of a grid or choice; low and high of a range."""

    def at(self, u: float) -> Any:
        """The value at quantile `u` in [0, 1).

        >>> Space("loguniform", (0.01, 1.0)).at(0.5)
        0.1
        """
        if self.kind in ("grid", "choice"):
            return self.values[int(u * len(self.values))]
        low, high = self.values
        if self.kind == "uniform":
            return low + u * (high - low)
        return float(f"{math.exp(math.log(low) + u * (math.log(high) - math.log(low))):.6g}")


def split_spaces(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Space]]:
    """Plain settings without the spaces, and the spaces by dotted path.

    >>> split_spaces({"budget": 100, "method": {"name": "momentum", "radius": {"grid": [0.1, 0.2]}}})
    ({'budget': 100, 'method': {'name': 'momentum'}}, {'method.radius': Space(kind='grid', values=(0.1, 0.2))})

    Raises RecipeError for a malformed space.
    """
    plain: dict[str, Any] = {}
    spaces: dict[str, Space] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS:
            spaces[key] = _space(key, *next(iter(value.items())))
        elif isinstance(value, Mapping):
            plain[key], below = split_spaces(value)
            spaces.update({f"{key}.{path}": space for path, space in below.items()})
        else:
            plain[key] = value
    return plain, spaces


def _space(key: str, kind: str, values: Any) -> Space:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise RecipeError(f"{key}: {kind}={shown(values)} must be a list that is not empty, as {{{kind}: [0.05, 0.1]}}")
    if kind in ("loguniform", "uniform"):
        # YAML reads 1e-3 as text: it wants 1.0e-3. What is meant is plain.
        try:
            low, high = (float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            low = high = math.nan
        if not -math.inf < low < high < math.inf or (kind == "loguniform" and low <= 0):
            raise RecipeError(
                f"{key}: {kind}={shown(list(values))} must be [low, high]{' above 0' * (kind != 'uniform')}"
            )
        return Space(kind, (low, high))
    return Space(kind, tuple(values))


def crossed(spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    """Every combination of the values of grids and choices, in order; one empty combination of no spaces.

    Raises RecipeError for more of them than anybody would run.
    """
    count = math.prod(len(space.values) for space in spaces.values())
    if count > MANY:
        raise RecipeError(f"{', '.join(spaces)}: {count} combinations; compare {MANY} or fewer")
    return [
        dict(zip(spaces, values, strict=True))
        for values in itertools.product(*(space.values for space in spaces.values()))
    ]


def drawn(spaces: Mapping[str, Space], samples: int, seed: int) -> list[dict[str, Any]]:
    """`samples` different combinations, stratified in each setting (a Latin hypercube); all, where there are no more.

    >>> [c["r"] for c in drawn({"r": Space("choice", (1, 2, 3))}, 8, 1)]
    [1, 2, 3]
    """
    if all(space.kind in ("grid", "choice") for space in spaces.values()):
        every = crossed(spaces)
        if len(every) <= samples:
            return every
    noise = rng(seed, 0, Purpose.OPTIMIZER)
    columns = {}
    for path, space in spaces.items():
        quantiles = (noise.permutation(samples) + noise.random(samples)) / samples
        columns[path] = [space.at(float(u)) for u in quantiles]
    rows = [{path: column[i] for path, column in columns.items()} for i in range(samples)]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def applied(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with these values at their dotted paths."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    for path, value in values.items():
        *parents, last = path.split(".")
        below = merged
        for parent in parents:
            if not isinstance(below.get(parent), dict):
                below[parent] = {"name": below[parent]} if parent in below else {}
            below = below[parent]
        below[last] = value
    return merged


def in_words(values: Mapping[str, Any]) -> str:
    """`radius=0.1 k=4`: how a label tells a combination."""
    return " ".join(
        f"{path.removeprefix('method.')}={format(value, '.6g') if isinstance(value, float) else value}"
        for path, value in values.items()
    )
