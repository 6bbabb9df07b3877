"""The recipe: every setting of a run, typed, from YAML and `key=value` overrides.

An unknown key, a value of the wrong type and a key without effect are errors that name the nearest that exists.
Knows nothing of what the settings do.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from engine.errors import RecipeError, nearest, shown
from engine.settings import (
    HUGE,
    LONGEST_NAME,
    LONGEST_URI,
    MANY,
    Count,
    Positive,
    Range,
    Seed,
    Steps,
    Weight,
    check,
    typed,
)
from tuning import settings_text

HALVES = ("all", "base", "new")
URIS = ("task", "box", "start")
"""Settings that may hold a path."""


@dataclass(frozen=True, kw_only=True)
class PromptRecipe:
    """What is searched."""

    name: str = "text"
    """Kind of prompt (`keyhole list prompts`)."""
    tokens: Annotated[int, Range(1, 1000)] | None = None
    """Context tokens M; null: as the method likes, else as many as the template has."""
    per_class: bool | Steps | None = None
    """Whether every class has a text context of its own (CoOp's class-specific contexts); a number: where there are no
    more classes than that; null: as the method likes, else one for all."""
    subspace: str | None = None
    """`full`, `random:D` (a number, or a share such as 1/4), of text also `vocabulary:K`, `low-rank:RANK`; null: as the
    method likes, else full."""
    width: Count | None = None
    """Border of a pixel frame in pixels; None: 30/224 of the image's side."""
    grid: Annotated[int, Range(2, MANY)] | None = None
    """Knots along a pixel frame's side, interpolated between; None: every pixel by itself."""

    def __post_init__(self) -> None:
        check(self, "prompt.")


@dataclass(frozen=True, kw_only=True)
class PoolRecipe:
    """Where candidates are evaluated."""

    chunk: Count = 2
    """Candidates evaluated together. Part of what "the same bits" means."""
    cpus: Annotated[float, Range(0.0, 1e4)] = 1
    """CPUs a worker."""
    gpus: Annotated[float, Range(0.0, 1e4)] = 0
    """GPUs a worker; fractions share one."""
    threads: Annotated[int, Range(1, 1024)] | None = 1
    """Threads of a worker, and of this process for workers=0; null: leave it to the library."""
    timeout_s: Annotated[float, Range(1e-3, HUGE)] = 600
    """Time limit of one chunk, after which its worker is replaced."""
    mixed: bool = False
    """Accept workers that differ in device, builds or canary."""

    def __post_init__(self) -> None:
        check(self, "pool.")
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if value != round(value, 4) or (name == "gpus" and value > 1 and value % 1):
                raise RecipeError(
                    f"pool.{name}={value}: Ray counts in steps of 0.0001, and more GPUs than one in whole ones"
                )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run."""

    task: str = "mini:digits"
    """Task URI."""
    box: str = "mini:resnet"
    """Box URI."""
    method: str = "sketch"
    """Method name (`keyhole list methods`) or `package.module:Class`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own settings: `method.radius=0.1` on the command line."""
    prompt: PromptRecipe = PromptRecipe()
    start: str | None = None
    """Run folder or artifact whose prompt the search begins at; null: the template."""
    head: str | None = None
    """Head joined to the prompt method, trained on the answers already paid for (`keyhole list methods`: head:NAME)."""
    objective: str = "auto"
    """Loss that is searched; auto: cross-entropy, or the error rate where a box gives only labels."""
    shots: Steps = 16
    """Training images a class; validation has min(shots, 4)."""
    seed: Seed = 1
    """Sets every random draw."""
    data_seed: Seed | None = None
    """Overrides the seed of the few-shot sample alone."""
    half: str = "all"
    """Classes: all, base (the first half) or new (the second)."""
    test_images: Steps | None = None
    """Images of the test split that are read, drawn by `data_seed`; null, or more than there are: all."""
    budget: Positive = 1000
    """Evaluations: one is one candidate on all training images."""
    batch: Steps | None = None
    """Most candidates a round; null: as the method likes."""
    rows: Steps | None = None
    """Images a round; null: the whole few-shot set."""
    looks: Count = 20
    """How often the validation split is read to select what is kept."""
    workers: Annotated[int, Range(0, 1000)] = 0
    """Ray actors; 0: in this process, without Ray."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    pool: PoolRecipe = PoolRecipe()
    checkpoint_s: Weight = 5
    """Seconds between checkpoints, or more where writing one takes over a twentieth of that."""

    def __post_init__(self) -> None:
        check(self)
        if self.half not in HALVES:
            raise RecipeError(f"half={shown(self.half)} must be {', '.join(HALVES[:-1])} or {HALVES[-1]}")

    @property
    def sample_seed(self) -> int:
        """That draws the few-shot sample."""
        return self.seed if self.data_seed is None else self.data_seed

    def as_dict(self) -> dict[str, Any]:
        """Plain nested values, as `recipe.yaml` holds them; `make_recipe` reads them back."""
        plain = dataclasses.asdict(self)
        plain["method"] = {"name": self.method, **plain.pop("options")} if self.options else self.method
        plain.pop("options", None)
        return plain


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file (tuning/settings_text.py). Raises RecipeError for one that cannot be read."""
    return settings_text.read(path)


def make_recipe(
    settings: Mapping[str, Any], overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Recipe:
    """A typed recipe from nested settings, `key.path=value` overrides (values are YAML) and flags, the last word last.

    >>> make_recipe({"task": "mini:digits"}, ["budget=500", "method.radius=0.1"]).options
    {'radius': 0.1}
    """
    merged: dict[str, Any] = {}
    for key, value in settings.items():
        _set(merged, str(key).split("."), value, str(key))
    for word in overrides:
        key, value = settings_text.override(word, "budget=500 or method.radius=0.1")
        _set(merged, key.split("."), value, key)
    for key, value in (flags or {}).items():
        _set(merged, [key], value, key)
    method = merged.get("method")
    if isinstance(method, dict):
        options = {key: value for key, value in method.items() if key != "name"}
        merged["method"] = method.get("name", Recipe.method)
        merged["options"] = {**typed(merged.get("options", {}), Mapping, "options"), **options}
    return _build(Recipe, merged, "")


def _set(target: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    *parents, last = path
    for parent in parents:
        below = target.setdefault(parent, {})
        if not isinstance(below, dict):
            # `method: momentum` followed by `method.radius=0.1`: the name moves into the mapping.
            below = target[parent] = {"name": below}
        target = below
    if isinstance(target.get(last), dict):
        if isinstance(value, dict):
            for name, item in value.items():
                _set(target[last], [str(name)], item, key)
            return
        if target[last].get("name", value) == value:
            target[last]["name"] = value
            return
        # Another name: the settings of the one it replaces would mean nothing to it.
        value = {"name": value}
    target[last] = value


def _build(kind: type, settings: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    for key in settings:
        if key not in known or (kind is Recipe and key == "options" and "method" not in settings):
            hint = nearest(str(key), known - {"options"})
            raise RecipeError(f"unknown recipe key {shown(where + str(key))}{hint}")
    return kind(**{key: _value(value, hints[key], where + key) for key, value in settings.items()})


def _value(value: Any, kind: Any, key: str) -> Any:
    """The value as its field's type."""
    if not dataclasses.is_dataclass(kind) or isinstance(value, kind):
        return typed(value, kind, key, LONGEST_URI if key in URIS else LONGEST_NAME)
    if isinstance(value, str) and "name" in {f.name for f in dataclasses.fields(kind)}:
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key}={shown(value)} must be a mapping of settings")
    return _build(kind, value, key + ".")
