"""The tables and the JSON of `keyhole bench search`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.entry import header, line
from bench.search.arms import COOP, TEMPLATE

Row = Mapping[str, Any]

SHARES = (0.5, 0.75, 0.9)
"""Training losses to be reached: shares of the way from zero-shot to white-box CoOp, in the logarithm of the loss."""


def summarise(rows: Sequence[Row], known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All numbers of the tables.

    Args:
        rows: As `bench.search.arms.run` gives them.
        known: As `bench.search.arms.references` gives it.
    """
    tasks, budgets = values(rows, "task"), sorted(values(rows, "budget"))
    targets = _targets(known)
    methods = {}
    for label in values(rows, "label"):
        mine = [row for row in rows if row["label"] == label]
        spent = [sum(row[name] for row in mine) for name in ("evaluations", "seconds")]
        methods[label] = {
            "method": mine[0]["method"],
            "options": mine[0]["options"],
            "evaluations_per_second": spent[0] / max(1e-9, spent[1]),
            "budgets": {f"{b:g}": _at([row for row in mine if row["budget"] == b], tasks) for b in budgets},
            "reached": {
                task: [_median([row for row in mine if row["task"] == task], target) for target in targets[task]]
                for task in targets
            },
        }
    return {"methods": methods, "targets": targets, "references": known}


def values(rows: Iterable[Row], name: str) -> list[Any]:
    """The different values of a column, in order."""
    return list(dict.fromkeys(row[name] for row in rows))


def _at(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, Any]:
    """At one budget: mean over tasks with the standard error over seeds, and each task by itself."""

    def both(rows: Sequence[Row]) -> dict[str, Any]:
        return {name: mean_and_error(rows, name) for name in ("best_loss", "accuracy")}

    return {
        "pairs": float(np.mean([row["pairs"] for row in rows])),
        **both(rows),
        "tasks": {task: both([row for row in rows if row["task"] == task]) for task in tasks},
    }


def mean_and_error(rows: Sequence[Row], name: str) -> tuple[float, float | None]:
    """Mean over tasks and seeds, and the standard error of the seeds' means; None where there is one seed.

    >>> rows = [{"seed": s, "x": x} for s, x in ((1, 0.1), (1, 0.3), (2, 0.4), (2, 0.6))]
    >>> [round(value, 3) for value in mean_and_error(rows, "x")]
    [0.35, 0.15]
    """
    means = [float(np.mean([row[name] for row in rows if row["seed"] == seed])) for seed in values(rows, "seed")]
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(np.mean(means)), error


def mean_reference(known: Mapping[str, Mapping[str, Any]], name: str, measure: str) -> float | None:
    """Mean over tasks of a reference's `loss` or `accuracy`; None where it was not made for all."""
    found = [told[name][measure] for told in known.values() if name in told]
    return float(np.mean(found)) if len(found) == len(known) else None


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations to reach a loss


def _targets(known: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Training losses by task; none where there is no CoOp."""
    return {
        task: [told[TEMPLATE]["loss"] ** (1 - share) * told[COOP]["loss"] ** share for share in SHARES]
        for task, told in known.items()
        if COOP in told
    }


def evaluations_to(target: float, budgets: Sequence[float], losses: Sequence[float]) -> float:
    """The budget at which runs come to a training loss: interpolated in the logarithm of the budget, between runs that
    had the whole budget each. The smallest budget where that one is enough already, infinity where none is.

    >>> evaluations_to(0.5, [100, 400], [0.6, 0.4]), evaluations_to(0.3, [100, 400], [0.6, 0.4])
    (200.0, inf)
    """
    if losses[0] <= target:
        return float(budgets[0])
    for i in range(1, len(budgets)):
        if losses[i] <= target:
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
            return float(round(math.exp((1 - share) * math.log(budgets[i - 1]) + share * math.log(budgets[i])), 6))
    return math.inf


def _median(rows: Sequence[Row], target: float) -> float | None:
    """Over seeds; None: not within the largest budget."""
    found = []
    for seed in values(rows, "seed"):
        mine = sorted((row["budget"], row["best_loss"]) for row in rows if row["seed"] == seed)
        found.append(evaluations_to(target, *zip(*mine, strict=True)))
    middle = float(np.median(found))
    return middle if math.isfinite(middle) else None


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def tables(summary: Mapping[str, Any]) -> str:
    """Markdown."""
    budgets, methods = summary["budgets"], summary["methods"]
    lines = [
        "Training loss / test accuracy: means over the tasks ± the standard error of the seeds.\n",
        header("method", *(f"{b:g}" for b in budgets), "evaluations a second"),
    ]
    for label, told in methods.items():
        cells = [f"{_number(at['best_loss'])} / {_number(at['accuracy'])}" for at in told["budgets"].values()]
        lines.append(line(f"`{label}`", *cells, f"{told['evaluations_per_second']:.0f}"))
    lines.append(f"\n{_reference_line(summary['references'])}")
    if summary["targets"]:
        shares = ", ".join(f"{share:.0%}" for share in SHARES)
        lines.append(
            f"\nEvaluations to reach a training loss (in brackets: {shares} of the way from zero-shot to CoOp in the "
            "logarithm of the loss), median over seeds:\n"
        )
        targets = summary["targets"].items()
        lines.append(
            header("method", *(f"{task} ({' / '.join(f'{x:.2g}' for x in losses)})" for task, losses in targets))
        )
        for label, told in methods.items():
            cells = [" / ".join(_reached(x, min(budgets), max(budgets)) for x in xs) for xs in told["reached"].values()]
            lines.append(line(f"`{label}`", *cells))
    return "\n".join(lines)


def _number(told: Sequence[float | None]) -> str:
    return f"{told[0]:.3f}" + ("" if told[1] is None else f" ± {told[1]:.3f}")


def _reached(evaluations: float | None, least: float, most: float) -> str:
    if evaluations is None:
        return f"> {most:g}"
    return f"<= {least:g}" if evaluations <= least else f"{evaluations:.0f}"


def _reference_line(known: Mapping[str, Mapping[str, Any]]) -> str:
    names = [name for name in next(iter(known.values())) if name != "images"]
    told = {name: (mean_reference(known, name, "loss"), mean_reference(known, name, "accuracy")) for name in names}
    words = (f"`{name}` {loss:.3f} / {accuracy:.3f}" for name, (loss, accuracy) in told.items() if accuracy is not None)
    return f"For comparison: {', '.join(words)}."
