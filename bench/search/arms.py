"""What `keyhole bench search` compares: methods with their options, run as a comparison for every budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.comparisons import CHUNK, Row, carry_out
from tuning.compare.comparison import Comparison, arms_of, make_comparison, trials_of
from tuning.compare.sweep_spaces import in_words
from tuning.recipe import make_recipe

TEMPLATE, COOP, HEAD = "zero-shot", "ceiling:coop", "head:auto"
"""What searches are measured against. A box may refuse the last two."""
REFERENCE_BUDGET = 3.0
"""Evaluations: those methods send the training and validation images once."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its options: a row of the tables."""

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings of the prompt."""

    @classmethod
    def read(cls, word: str) -> Arm:
        """From the command line's `name:option=value:prompt.setting=value`.

        >>> Arm.read("nevergrad:CMA:sigma=0.3:prompt.per_class=true")
        Arm(label='nevergrad:CMA sigma=0.3 per_class=True', method='nevergrad:CMA', options={'sigma': 0.3},
            prompt={'per_class': True})

        Raises:
            RecipeError: A method or an option that nobody has.
        """
        parts = word.split(":")
        name = ":".join(part for part in parts if "=" not in part)
        settings = [part if part.startswith("prompt.") else f"method.{part}" for part in parts if "=" in part]
        given = make_recipe({"method": {"name": name}}, settings)
        prompt = {part.name: value for part in fields(given.prompt)
                  if (value := getattr(given.prompt, part.name)) != part.default}  # fmt: skip
        label = " ".join([name, *filter(None, map(in_words, (given.options, prompt)))])
        arm = cls(label=label, method=name, options=dict(given.options), prompt=prompt)
        trials_of(Setting(tasks=("toy:",), seeds=(1,)).comparison([arm], 1.0))
        return arm


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where all methods are compared."""

    tasks: Sequence[str]
    seeds: Sequence[int]
    box: str = "mini:resnet"
    shots: int = 16
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """As in a recipe; an arm's own settings come first."""
    parallel: int | None = 0
    """Trials at once, as `bench.comparisons.carry_out` takes it."""

    def comparison(self, arms: Sequence[Arm], budget: float) -> Comparison:
        """Arms whose settings of the prompt are the same."""
        prompt = {**self.prompt, **arms[0].prompt}
        return make_comparison(
            {
                "tasks": self.tasks,
                "seeds": self.seeds,
                "boxes": self.box,
                "shots": self.shots,
                "methods": [{"name": arm.method, **arm.options} for arm in arms],
                "budget": budget,
                "recipe": {"prompt": prompt, "pool": {"chunk": CHUNK}},
                "title": f"keyhole bench search, {budget:g} evaluations",
            }
        )


def run(arms: Sequence[Arm], budgets: Sequence[float], setting: Setting, out: Path) -> list[Row]:
    """A row of `bench.comparisons` a trial, in the order of the arms, with its `arm` (the label), `method`, `options`
    and, for the tables, a `label` that names the head too, where there is one.

    Args:
        arms: All different.
        budgets: Evaluations; every one is a run of its own, since schedules scale to the budget.
        setting: Where.
        out: The folder of the comparisons: one for each budget and each arm's own settings of the prompt.

    Raises as `bench.comparisons.carry_out` does.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(in_words(arm.prompt), []).append(arm)
    named, comparisons = {}, {}
    for budget in budgets:
        for words, group in groups.items():
            folder = out / re.sub(r"[^\w.=]+", "-", f"{budget:g} {words}".strip())
            comparisons[folder] = setting.comparison(group, budget)
            labels = [compared.label for compared in arms_of(comparisons[folder])]
            named[folder] = dict(zip(labels, group, strict=True))
    found = []
    for folder, rows in carry_out(comparisons, setting.parallel).items():
        found += [(named[folder][row["label"]], row) for row in rows]
    found.sort(key=lambda pair: arms.index(pair[0]))
    return [
        {**row, "arm": arm.label, "label": _label(arm, row["head"]), "method": arm.method, "options": dict(arm.options)}
        for arm, row in found
    ]


def _label(arm: Arm, head: str | None) -> str:
    """The head is named where the method's own prompt is deployed with one: such a row stands apart from prompts."""
    return arm.label if head is None or head in arm.label else f"{arm.label}, with its {head}"


def references(setting: Setting, out: Path) -> dict[str, dict[str, Any]]:
    """By task, means over seeds: its number of training `images`, and `loss` and `accuracy` of each reference there is.

    Raises as `bench.comparisons.carry_out` does.
    """
    arms = [Arm(label=name, method=name) for name in (TEMPLATE, COOP, HEAD)]
    comparison = setting.comparison(arms, REFERENCE_BUDGET)
    rows = carry_out({out: comparison}, setting.parallel, optional=(COOP, HEAD))[out]
    found: dict[str, dict[str, Any]] = {}
    for task in setting.tasks:
        mine = [row for row in rows if row["task"] == task]
        found[task] = {"images": round(mine[0]["pairs"] / mine[0]["evaluations"])}
        for name in dict.fromkeys(row["method"] for row in mine):
            means = (float(np.mean([row[key] for row in mine if row["method"] == name]))
                     for key in ("best_loss", "accuracy"))  # fmt: skip
            found[task][name] = dict(zip(("loss", "accuracy"), means, strict=True))
    return found
