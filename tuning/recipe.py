"""The recipe: every setting of a run, typed, from YAML and `key=value` overrides.

An unknown key, a value of the wrong type and a key without effect are errors that name the nearest that exists.
Knows nothing of what the settings do.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import RecipeError, nearest


@dataclass(frozen=True, kw_only=True)
class PromptRecipe:
    """What is searched."""

    name: str = "text"
    """Kind of prompt (`keyhole list prompts`)."""
    tokens: int | None = None
    """Context tokens M; null: as the method likes, else as many as the template has."""
    per_class: bool | int | None = None
    """Whether every class has a text context of its own (CoOp's class-specific contexts); a number: where there are no
    more classes than that; null: as the method likes, else one for all."""
    subspace: str | None = None
    """`full`, `random:D` (a number, or a share such as 1/4), of text also `vocabulary:K`, `low-rank:RANK`; null: as the
    method likes, else full."""
    width: int | None = None
    """Border of a pixel frame in pixels; None: 30/224 of the image's side."""
    grid: int | None = None
    """Knots along a pixel frame's side, interpolated between; None: every pixel by itself."""


@dataclass(frozen=True, kw_only=True)
class PoolRecipe:
    """Where candidates are evaluated."""

    chunk: int = 2
    """Candidates evaluated together. Part of what "the same bits" means."""
    cpus: float = 1
    """CPUs a worker."""
    gpus: float = 0
    """GPUs a worker; fractions share one."""
    threads: int | None = 1
    """Threads of a worker, and of this process for workers=0; null: leave it to the library."""
    timeout_s: float = 600
    """Time limit of one chunk, after which its worker is replaced."""
    mixed: bool = False
    """Accept workers that differ in device, builds or canary."""


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
    shots: int = 16
    """Training images a class; validation has min(shots, 4)."""
    seed: int = 1
    """Sets every random draw."""
    data_seed: int | None = None
    """Overrides the seed of the few-shot sample alone."""
    half: str = "all"
    """Classes: all, base (the first half) or new (the second)."""
    test_images: int | None = None
    """Images of the test split that are read, drawn by `data_seed`; null, or more than there are: all."""
    budget: float = 1000
    """Evaluations: one is one candidate on all training images."""
    batch: int | None = None
    """Most candidates a round; null: as the method likes."""
    rows: int | None = None
    """Images a round; null: the whole few-shot set."""
    looks: int = 20
    """How often the validation split is read to select what is kept."""
    workers: int = 0
    """Ray actors; 0: in this process, without Ray."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    pool: PoolRecipe = PoolRecipe()
    checkpoint_s: float = 5
    """Seconds between checkpoints, or more where writing one takes over a twentieth of that."""

    def __post_init__(self) -> None:
        for name in ("shots", "looks", "seed"):
            if getattr(self, name) < (0 if name == "seed" else 1):
                raise RecipeError(f"{name}={getattr(self, name)} must be at least {0 if name == 'seed' else 1}")
        if not self.budget > 0:
            raise RecipeError(f"budget={self.budget} must be a positive number of evaluations")
        if self.workers < 0:
            raise RecipeError(f"workers={self.workers} must be 0 (in this process) or the number of Ray actors")
        if self.half not in ("all", "base", "new"):
            raise RecipeError(f"half={self.half!r} must be all, base or new")
        for name in ("batch", "rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} must be at least 1, or null")
        if self.pool.chunk < 1:
            raise RecipeError(f"pool.chunk={self.pool.chunk} must be at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Plain nested values, as `recipe.yaml` holds them; `make_recipe` reads them back."""
        plain = dataclasses.asdict(self)
        plain["method"] = {"name": self.method, **plain.pop("options")} if self.options else self.method
        plain.pop("options", None)
        return plain


def load_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file. Raises RecipeError for a file that is missing or is no mapping."""
    import yaml

    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path} is not YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise RecipeError(f"recipe {path} holds a {type(settings).__name__}, not `key: value` lines")
    return settings


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
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is not key=value; for example budget=500 or method.radius=0.1")
        _set(merged, key.split("."), _scalar(text, override), key)
    for key, value in (flags or {}).items():
        _set(merged, [key], value, key)
    method = merged.get("method")
    if isinstance(method, dict):
        options = {key: value for key, value in method.items() if key != "name"}
        merged["method"] = method.get("name", Recipe.method)
        merged["options"] = {**merged.get("options", {}), **options}
    return _build(Recipe, merged, "")


def _scalar(text: str, override: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not YAML ({error})") from error
    # `task=toy:` is a name that ends in a colon, not a mapping.
    return text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


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
            raise RecipeError(f"unknown recipe key {where + str(key)!r}{nearest(str(key), known - {'options'})}")
    values = {key: _check(hints[key], value, where + key) for key, value in settings.items()}
    return kind(**values)


def _check(hint: Any, value: Any, key: str) -> Any:
    """The value as its field's type; only int -> float is converted, all else that differs is an error."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, str) and "name" in {f.name for f in dataclasses.fields(hint)}:
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise RecipeError(f"{key}={value!r} must be a mapping of settings")
        return _build(hint, value, key + ".")
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(hint) is not None and not isinstance(hint, types.UnionType):
        allowed = (Mapping,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and bool not in allowed:
        allowed = ()
    if allowed and isinstance(value, tuple(allowed)):
        return value
    names = " or ".join(
        "null" if a is type(None) else a.__name__ for a in typing.get_args(hint) or (hint,) if isinstance(a, type)
    )
    raise RecipeError(f"{key}={value!r} is a {type(value).__name__}; it must be {names or 'a mapping'}")
