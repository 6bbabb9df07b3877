"""What a comparison is: settings in, trials out. Methods x tasks x boxes x shots x seeds x compared settings.

Knows nothing of where trials run and of what is reported.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import search
from engine.errors import RecipeError, nearest, shown
from engine.settings import LONGEST_URI, Count, Positive, Seed, Steps, check, typed
from tuning import settings_text
from tuning.compare.sweep_spaces import Space, applied, crossed, in_words, split_spaces
from tuning.compare.trial import Trial
from tuning.recipe import make_recipe
from tuning.resolve import method_of

SEARCHERS = ("random", "nevergrad", "optuna")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Every setting of a comparison."""

    tasks: tuple[str, ...] = ("mini:digits",)
    """Task URIs."""
    methods: tuple[Any, ...] = ("zero-shot", "sketch")
    """Names, or mappings of a name and options."""
    boxes: tuple[str, ...] = ("mini:resnet",)
    """Box URIs."""
    seeds: tuple[Seed, ...] = (1, 2, 3)
    """A run each; the seed also draws the few-shot sample."""
    shots: tuple[Steps, ...] = (16,)
    """Training images a class."""
    budget: Positive = 1000
    """Evaluations of each run."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of every run (docs/recipe.md); search spaces may stand for values."""
    base_to_new: bool = False
    """Tune on the base half of the classes, test on both halves."""
    shift: tuple[str, ...] = ()
    """Tasks that every tuned prompt is tested on besides its own."""
    samples: Count = 8
    """Combinations that a search tries where settings are to be chosen on validation."""
    searcher: str = "random"
    """How a search draws them: random (stratified), nevergrad, optuna."""
    asha: bool = False
    """Stop a search's hopeless runs early (successive halving on validation loss over evaluations)."""
    search_seed: Seed = 0
    """Seed of a search's runs and few-shot sample: none of `seeds`, so that no choice is made on what is reported."""
    data: str = ""
    """Folder that `{data}` in tasks stands for."""
    gate: Mapping[str, Any] = field(default_factory=dict)
    """`zero_shot`: published accuracies by task; `tolerance`. Checked before anything is tuned."""
    published: tuple[Mapping[str, Any], ...] = ()
    """Others' numbers with their budgets, printed beside ours."""
    title: str = "Comparison"
    """Of the report."""

    def __post_init__(self) -> None:
        check(self)
        for name in ("tasks", "methods", "boxes", "seeds", "shots"):
            if not getattr(self, name):
                raise RecipeError(f"{name} is empty; a comparison has at least one")
            if len({json.dumps(item) for item in getattr(self, name)}) < len(getattr(self, name)):
                raise RecipeError(f"{name}={shown(getattr(self, name))} names something twice")
        if self.searcher not in SEARCHERS:
            hint = nearest(self.searcher, SEARCHERS)
            raise RecipeError(f"searcher={shown(self.searcher)}{hint}; allowed are {', '.join(SEARCHERS)}")
        for task, value in typed(self.gate.get("zero_shot") or {}, Mapping, "gate.zero_shot").items():
            typed(value, float, f"gate.zero_shot.{task}")
        typed(self.gate.get("tolerance", 0.0), float, "gate.tolerance")
        for name in ("task", "box", "method", "seed", "shots", "budget", "half", "options", "workers"):
            if name in self.recipe and (name != "method" or not isinstance(self.recipe[name], Mapping)):
                why = {"workers": "trials run in their own process: say --parallel for how many at once",
                       "half": "say --base-to-new"}.get(name, "it is a setting of the comparison itself")  # fmt: skip
                raise RecipeError(f"recipe.{name} cannot be set for all runs: {why}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `compare.yaml` holds them."""
        return json.loads(json.dumps(asdict(self)))


def split_list(text: str, *, uris: bool = False) -> tuple[str, ...]:
    """A list from the command line. URIs may hold commas: only one before a new `scheme:` divides.

    >>> split_list("open_clip:ViT-B-16,openai?gives=scores,labels,mini:resnet", uris=True)
    ('open_clip:ViT-B-16,openai?gives=scores,labels', 'mini:resnet')
    """
    parts = re.split(r",(?=[A-Za-z][\w.-]*:)", text) if uris else text.split(",")
    return tuple(part.strip() for part in parts if part.strip())


def flags_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from the command line's words. Raises RecipeError for a list that holds no numbers where it must."""
    told: dict[str, Any] = dict(flags)
    for name in ("tasks", "boxes", "shift", "methods"):
        if name in told:
            told[name] = split_list(told[name], uris=name != "methods")
    for name in ("seeds", "shots"):
        if name in told:
            try:
                told[name] = tuple(int(word) for word in split_list(told[name]))
            except ValueError:
                raise RecipeError(f"--{name} {flags[name]!r} must be whole numbers divided by commas") from None
    return told


def make_comparison(
    settings: Mapping[str, Any], overrides: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Comparison:
    """A typed comparison from a file's settings, `key=value` words and flags, the last word last.

    Keys that are no settings of a comparison are settings of every run: `prompt.tokens=8`, `method.k={grid: [2, 4]}`.
    Raises RecipeError for what is unknown or of the wrong type.
    """
    known = typing.get_type_hints(Comparison)
    merged: dict[str, Any] = {}
    common = dict(typed(settings.get("recipe") or {}, Mapping, "recipe"))
    words = []
    for word in overrides:
        words.append(settings_text.override(word, "budget=500 or method.k={grid: [2, 4]}"))
    for key, value in [*settings.items(), *words, *(flags or {}).items()]:
        if key == "recipe":
            continue
        if key in known:
            merged[key] = value
        else:
            common[key] = value
    merged = {key: _typed(value, known[key], key) for key, value in merged.items()}
    nested: dict[str, Any] = {}
    for key, value in common.items():
        nested = applied(nested, {key: value}) if "." in key else {**nested, key: value}
    return Comparison(**merged, recipe=nested)


def _typed(value: Any, kind: Any, key: str) -> Any:
    """The value as its field's type; where that is a tuple, one item may stand for itself."""
    if typing.get_origin(kind) is not tuple:
        return typed(value, kind, key, LONGEST_URI)
    items = value if isinstance(value, (list, tuple)) else [value]
    each = typing.get_args(kind)[0]
    try:
        return tuple(typed(item, each, key, LONGEST_URI) for item in items)
    except RecipeError:
        hint = "; quote what ends in a colon" if any(isinstance(item, dict) for item in items) else ""
        raise RecipeError(f"{key}={shown(value)} must be a list of {each.__name__}{hint}") from None


# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of the tables: a method with its fixed options, and the settings that a search chooses for it."""

    label: str
    method: str
    settings: Mapping[str, Any]
    config: Mapping[str, Any]
    searched: Mapping[str, Space]


def arms_of(comparison: Comparison) -> list[Arm]:
    """The methods, each with every combination of its grids. Raises RecipeError for an option that nobody has."""
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in comparison.methods]
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise RecipeError(f"methods: {shown(entry)} has no name; give `name: momentum` with its options beside it")
    entries = [dict(entry) for entry in entries]
    names = [entry["name"] for entry in entries]
    common, common_spaces = split_spaces(comparison.recipe)
    for_all = {**common.pop("method", {}), **_below("method", common_spaces)}
    taken: set[str] = set()
    arms = []
    for entry in entries:
        name = entry.pop("name")
        options = {key: value for key, value in for_all.items() if key in search.option_names(name)}
        taken |= options.keys()
        fixed, spaces = split_spaces(entry)
        twice = names.count(name) > 1
        fixed = {**{k: v for k, v in options.items() if not isinstance(v, Space)}, **fixed}
        spaces = {**{k: v for k, v in options.items() if isinstance(v, Space) and k not in fixed}, **spaces}
        every = {f"method.{key}": space for key, space in spaces.items()}
        if search.searches(name):
            every.update({path: space for path, space in common_spaces.items() if not path.startswith("method.")})
        searched = {path: space for path, space in every.items() if space.kind != "grid"}
        for combination in crossed({path: space for path, space in every.items() if space.kind == "grid"}):
            named = {**(fixed if twice else {}), **combination}
            arms.append(
                Arm(
                    label=f"{name} {in_words(named)}".strip(),
                    method=name,
                    settings=applied({**common, "method": {"name": name, **fixed}}, combination),
                    config=combination,
                    searched=searched,
                )
            )
    if for_all.keys() - taken:
        key = sorted(for_all.keys() - taken)[0]
        known = {option for name in names for option in search.option_names(name)}
        raise RecipeError(f"method.{key}: none of {', '.join(names)} has this option{nearest(key, known)}")
    return arms


def _below(prefix: str, spaces: Mapping[str, Space]) -> dict[str, Space]:
    return {path.partition(".")[2]: space for path, space in spaces.items() if path.partition(".")[0] == prefix}


def tasks_of(comparison: Comparison) -> tuple[str, ...]:
    """Task URIs with `{data}` filled in. Raises RecipeError where it is used and not given."""
    if not comparison.data and any("{data}" in task for task in comparison.tasks):
        raise RecipeError("the tasks stand in {data}: say where with --data FOLDER")
    return tuple(fill(task, comparison) for task in comparison.tasks)


def fill(text: str, comparison: Comparison) -> str:
    """A URI with `{data}` filled in."""
    return text.replace("{data}", str(Path(comparison.data).expanduser().absolute())) if comparison.data else text


def trials_of(comparison: Comparison, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> list[Trial]:
    """All trials, those that share an opened box and a few-shot sample next to each other.

    Args:
        chosen: what each search chose, by the name that `search_name` gives it.
    """
    found = []
    for arm in arms_of(comparison):  # a mistake in what will be searched is found now, too
        lowest = {path: space.at(0.0) for path, space in arm.searched.items()}
        first = (tasks_of(comparison)[0], comparison.boxes[0], comparison.shots[0], comparison.seeds[0])
        make_trial(comparison, arm, *first, {**arm.config, **lowest})
    for task in tasks_of(comparison):
        for box in comparison.boxes:
            for shots in comparison.shots:
                for seed in comparison.seeds:
                    for arm in arms_of(comparison):
                        name = search_name(arm, task, box, shots) if arm.searched else None
                        config = {**arm.config, **((chosen or {}).get(name, {}) if name else {})}
                        found.append(make_trial(comparison, arm, task, box, shots, seed, config, name))
    return _named(found)


def make_trial(
    comparison: Comparison,
    arm: Arm,
    task: str,
    box: str,
    shots: int,
    seed: int,
    config: Mapping[str, Any],
    search_of: str | None = None,
) -> Trial:
    """One trial; every error of its settings is raised here, before anything runs."""
    recipe = make_recipe(
        applied(
            {
                **arm.settings,
                "task": task,
                "box": box,
                "shots": shots,
                "seed": seed,
                "budget": float(comparison.budget),
                "half": "base" if comparison.base_to_new else "all",
            },
            config,
        )
    )
    method_of(recipe)
    return Trial(
        name=_slug(task, box, arm.label, f"{shots}-shot", f"s{seed}"),
        label=arm.label,
        recipe=recipe.as_dict(),
        config=dict(config),
        new_half=comparison.base_to_new,
        shift=tuple(uri for uri in (fill(uri, comparison) for uri in comparison.shift) if uri != task),
        search=search_of,
    )


def search_name(arm: Arm, task: str, box: str, shots: int) -> str:
    """Of the folder of a search."""
    return _slug(task, box, arm.label, f"{shots}-shot")


def _slug(*parts: str) -> str:
    words = [re.sub(r"[^\w.=-]+", "-", part.rstrip("/").rsplit("/", 1)[-1]).strip("-") for part in parts]
    return "_".join(words)


def _named(trials: Sequence[Trial]) -> list[Trial]:
    """Names all different: where two would be the same, a hash of what they were made of follows."""

    def told(trial: Trial) -> str:
        recipe = trial.recipe
        parts = [recipe["task"], recipe["box"], trial.label, recipe["shots"], recipe["seed"]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]

    counts = Counter(trial.name for trial in trials)
    return [replace(t, name=f"{t.name}_{told(t)}") if counts[t.name] > 1 else t for t in trials]
