"""Step sizes of `keyhole bench search`: one of five for each method, chosen on validation loss, its cost apart.

A sweep of `keyhole compare` chooses for each task by itself (tuning/compare/hyperparameter_sweep.py); here one value
serves all tasks, as a default does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from bench.comparisons import Row
from bench.entry import header, line
from bench.search.arms import Arm
from engine.protocols import Array
from tuning.compare.sweep_spaces import in_words

STEP_SIZES: dict[str, tuple[str, float]] = {
    "sketch": ("reach", 0.6),
    "momentum": ("radius", 0.3),
    "cbbt": ("lr", 0.1),
    "cbbt rule=adam": ("lr", 2e-3),
    "spsa-gc": ("a", 0.01),
    "bar": ("lr", 10.0),
    "zip": ("a", 0.01),
    "sharpzo": ("sigma", 0.4),
    "bpt-vlm": ("sigma", 1.0),
    "craft": ("sigma", 0.4),
    "nevergrad": ("sigma", 1.0),
}
"""Method with options, method or family -> its option that is a step size, and the option's default."""
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Of the default: the values tried, the same for all methods."""


def tried(arm: Arm) -> list[Arm]:
    """The method at its five step sizes; none where its step size is given already, or it has none.

    >>> [found.label for found in tried(Arm.read("momentum"))][:2]
    ['momentum radius=0.09', 'momentum radius=0.3']
    """
    names = (f"{arm.method} {in_words(arm.options)}", arm.method, arm.method.partition(":")[0])
    option, default = next((STEP_SIZES[name] for name in names if name in STEP_SIZES), ("", math.nan))
    if not option or option in arm.options:
        return []
    values = [float(f"{factor * default:.6g}") for factor in FACTORS]
    return [
        replace(arm, label=f"{arm.label} {option}={value:g}", options={**arm.options, option: value})
        for value in values
    ]


def choose(arms: Sequence[Arm], run: Callable[[list[Arm]], list[Row]]) -> tuple[list[Arm], dict[str, Any]]:
    """The methods at the step sizes of lowest mean rank by validation loss over tasks and seeds, and what was tried.

    Args:
        arms: The methods.
        run: Trials of many arms, as `bench.search.arms.run`.
    """
    rows = run([candidate for arm in arms for candidate in tried(arm)])
    kept, told = [], {}
    for arm in arms:
        candidates = tried(arm)
        if not candidates:
            kept.append(arm)
            continue
        mine = [[row for row in rows if row["arm"] == candidate.label] for candidate in candidates]
        losses = np.array([[row["val_loss"] for row in sorted(found, key=_problem)] for found in mine], float)
        ranks = _ranks(losses)
        best = _lowest(ranks)
        kept.append(replace(candidates[best], label=arm.label))
        option = next(name for name in candidates[best].options if name not in arm.options)
        told[arm.label] = {
            "option": option,
            "values": [candidate.options[option] for candidate in candidates],
            "ranks": ranks,
            "val_losses": losses.mean(1).tolist(),
            "chosen": candidates[best].options[option],
            "at_edge": best in (0, len(candidates) - 1),
            "runs": sum(map(len, mine)),
            "evaluations": sum(row["evaluations"] for found in mine for row in found),
        }
    return kept, told


def _problem(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["task"], row["seed"]


def _ranks(losses: Array) -> list[float]:
    """Mean rank over problems of losses `(values, problems)`, 0 the best: tasks differ a hundredfold in loss."""
    return (rankdata(np.nan_to_num(losses, nan=np.inf), axis=0).mean(-1) - 1).tolist()


def _lowest(ranks: Sequence[float]) -> int:
    """Of equals the one nearest to the default: runs too short to tell them apart choose nothing else."""
    return min(range(len(ranks)), key=lambda i: (ranks[i], abs(i - FACTORS.index(1.0))))


def table(told: Mapping[str, Any]) -> str:
    """Markdown: what was tried, the chosen in bold."""
    spent = sum(entry["evaluations"] for entry in told.values())
    lines = [f"Step sizes tried, mean rank by validation loss (0: best everywhere); {spent:,.0f} evaluations.\n"]
    lines.append(header("method", "option", *(f"default x {factor:g}" for factor in FACTORS), "evaluations"))
    for label, entry in told.items():
        cells = []
        for value, rank in zip(entry["values"], entry["ranks"], strict=True):
            mark = "**" if value == entry["chosen"] else ""
            cells.append(f"{mark}{value:g}: {rank:.1f}{mark}")
        lines.append(line(f"`{label}`", f"`{entry['option']}`", *cells, f"{entry['evaluations']:,.0f}"))
    return "\n".join(lines)
