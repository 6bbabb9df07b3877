"""Tables, JSON and curves of `keyhole bench search`.

Knows nothing of how trials run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuning.report.plots import COLOURS, DASHES, MARKERS
from tuning.report.terminal_table import count

Row = Mapping[str, Any]

SHARES = (0.5, 0.75, 0.9)
"""Training losses to be reached: shares of the way from zero-shot to white-box CoOp, in the logarithm of the loss."""
REFERENCES = ("images", "zero_shot_loss", "zero_shot_accuracy", "coop_loss", "coop_accuracy")
HIGHLIGHTED = 4
"""Methods that stand out in a picture of many: the first ones."""


def summarise(rows: Sequence[Row], known: Sequence[Row]) -> dict[str, Any]:
    """All numbers of the tables.

    Args:
        rows: labelled trials.
        known: what zero-shot and CoOp have, a row a task and seed.
    """
    tasks, labels, budgets = _values(rows, "task"), _values(rows, "label"), sorted(_values(rows, "budget"))
    targets = _targets(known)
    methods = {}
    for label in labels:
        mine = [row for row in rows if row["label"] == label]
        methods[label] = {
            "method": mine[0]["method"],
            "options": mine[0]["options"],
            "settings": mine[0]["settings"],
            "evaluations_per_cpu_second": _rate(mine),
            "budgets": {f"{b:g}": _at([row for row in mine if row["budget"] == b], tasks) for b in budgets},
            "reached": {
                task: [_median([row for row in mine if row["task"] == task], target) for target in targets[task]]
                for task in targets
            },
        }
    return {"methods": methods, "targets": targets, "references": _references(known)}


def _values(rows: Iterable[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _rate(rows: Sequence[Row]) -> float:
    return sum(row["evaluations"] for row in rows) / max(1e-9, sum(row["cpu_seconds"] for row in rows))


def _at(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, Any]:
    """At one budget: mean over tasks with the standard error over seeds, and each task by itself."""
    told: dict[str, Any] = {"pairs": float(np.mean([row["pairs"] for row in rows]))}
    for name in ("best_loss", "accuracy"):
        told[name] = mean_and_error(rows, name)
        told["tasks"] = told.get("tasks", {task: {} for task in tasks})
        for task in tasks:
            told["tasks"][task][name] = mean_and_error([row for row in rows if row["task"] == task], name)
    return told


def mean_and_error(rows: Sequence[Row], name: str) -> tuple[float, float | None]:
    """Mean over tasks and seeds, and the standard error of the seeds' means; None where there is one seed.

    >>> rows = [{"seed": s, "x": x} for s, x in ((1, 0.1), (1, 0.3), (2, 0.4), (2, 0.6))]
    >>> [round(value, 3) for value in mean_and_error(rows, "x")]
    [0.35, 0.15]
    """
    means = [float(np.mean([row[name] for row in rows if row["seed"] == seed])) for seed in _values(rows, "seed")]
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    return float(np.mean(means)), error


def _references(known: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Per task: its training images, and means over seeds of what zero-shot and, where there is one, CoOp has."""
    names = [name for name in REFERENCES if all(name in row for row in known)]
    return {
        task: {name: float(np.mean([row[name] for row in known if row["task"] == task])) for name in names}
        for task in _values(known, "task")
    }


# ---------------------------------------------------------------------------------------------------------------------
# Evaluations to reach a loss


def _targets(known: Sequence[Row]) -> dict[str, list[float]]:
    """Training losses by task; none where there is no CoOp."""
    return {
        task: [told["zero_shot_loss"] ** (1 - share) * told["coop_loss"] ** share for share in SHARES]
        for task, told in _references(known).items()
        if "coop_loss" in told
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
    for seed in _values(rows, "seed"):
        mine = sorted((row["budget"], row["best_loss"]) for row in rows if row["seed"] == seed)
        found.append(evaluations_to(target, *zip(*mine, strict=True)))
    middle = float(np.median(found))
    return middle if math.isfinite(middle) else None


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def tables(summary: Mapping[str, Any]) -> str:
    """Markdown."""
    budgets, methods = summary["budgets"], summary["methods"]
    lines = [
        "Training loss / test accuracy: means over the tasks ± the standard error of the seeds.\n",
        _line("method", *(f"{b:g}" for b in budgets), "evaluations a CPU second"),
        "|---" * (len(budgets) + 2) + "|",
    ]
    for label, told in methods.items():
        cells = [f"{_number(at['best_loss'])} / {_number(at['accuracy'])}" for at in told["budgets"].values()]
        lines.append(_line(f"`{label}`", *cells, f"{told['evaluations_per_cpu_second']:.0f}"))
    lines.append(f"\n{_reference_line(summary['references'])}")
    if summary["targets"]:
        shares = ", ".join(f"{share:.0%}" for share in SHARES)
        lines.append(
            f"\nEvaluations to reach a training loss (in brackets: {shares} of the way from zero-shot to CoOp in the "
            "logarithm of the loss), median over seeds:\n"
        )
        targets = summary["targets"].items()
        lines.append(
            _line("method", *(f"{task} ({' / '.join(f'{x:.2g}' for x in losses)})" for task, losses in targets))
        )
        lines.append("|---" * (len(targets) + 1) + "|")
        for label, told in methods.items():
            cells = [" / ".join(_reached(x, min(budgets), max(budgets)) for x in xs) for xs in told["reached"].values()]
            lines.append(_line(f"`{label}`", *cells))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(told: Sequence[float | None]) -> str:
    return f"{told[0]:.3f}" + ("" if told[1] is None else f" ± {told[1]:.3f}")


def _reached(evaluations: float | None, least: float, most: float) -> str:
    if evaluations is None:
        return f"> {most:g}"
    return f"<= {least:g}" if evaluations <= least else f"{evaluations:.0f}"


def _reference_line(references: Mapping[str, Mapping[str, float]]) -> str:
    def mean(name: str) -> str:
        return f"{np.mean([told[name] for told in references.values()]):.3f}"

    told = f"Zero-shot {mean('zero_shot_loss')} / {mean('zero_shot_accuracy')}"
    if all("coop_loss" in entry for entry in references.values()):
        told += f", white-box CoOp {mean('coop_loss')} / {mean('coop_accuracy')}"
    return f"{told}."


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def picture(summary: Mapping[str, Any], path: Path) -> None:
    """Training loss and test accuracy against evaluations and pairs: the mean over tasks, then a panel a task.

    The first methods are coloured; the others are grey, told apart by marker and dashes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles, budgets = _styles(list(summary["methods"])), summary["budgets"]
    panels = ["mean over tasks"] * (len(summary["tasks"]) > 1) + list(summary["tasks"])
    figure, axes = plt.subplots(
        2, len(panels), figsize=(max(7.0, 3.2 * len(panels)), 7.4), sharex=True, squeeze=False, layout="constrained"
    )
    for column, panel in enumerate(panels):
        for axis, name in zip(axes[:, column], ("best_loss", "accuracy"), strict=True):
            _panel(axis, summary, panel, name, styles)
        axes[0][column].set_title(panel, fontsize=10)
        axes[1][column].set_xticks(budgets, [f"{b:g}" for b in budgets], fontsize=8)
        axes[1][column].set_xlabel("evaluations")
        if panel in summary["references"]:
            images = summary["references"][panel]["images"]
            both = (lambda x, n=images: x * n, lambda x, n=images: x / n)
            top = axes[0][column].secondary_xaxis("top", functions=both)
            top.set_xticks([b * images for b in budgets], [count(b * images) for b in budgets], fontsize=7)
            top.set_xlabel("pairs", fontsize=8)
            top.minorticks_off()
    axes[0][0].set_ylabel("training loss")
    axes[1][0].set_ylabel("test accuracy")
    handles = [plt.Line2D([], [], label=label, **style) for label, style in styles.items()]
    handles += [plt.Line2D([], [], label=label, **style) for label, style in _LEVELS.values()]
    across = int(figure.get_figwidth() / (0.8 + 0.07 * max(len(str(handle.get_label())) for handle in handles)))
    figure.legend(handles=handles, loc="outside lower center", ncol=max(1, across), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


_LEVELS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero_shot": ("zero-shot", {"color": "black", "linestyle": ":", "linewidth": 1.0}),
    "coop": ("CoOp (white box)", {"color": "black", "linestyle": (0, (6, 2)), "linewidth": 1.0}),
}


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    styles = {}
    coloured = len(labels) if len(labels) <= len(COLOURS) else HIGHLIGHTED
    for i, label in enumerate(labels):
        front = i < coloured
        j = i if front else i - coloured
        styles[label] = {
            "color": COLOURS[i] if front else "0.62",
            "marker": MARKERS[j % len(MARKERS)],
            "linestyle": "-" if front else DASHES[j % len(DASHES)],
            "linewidth": 1.8 if front else 0.9,
            "markersize": 4.5 if front else 3.5,
            "zorder": 3 if front else 2,
        }
    return styles


def _panel(axis: Any, summary: Mapping[str, Any], panel: str, name: str, styles: Mapping[str, Any]) -> None:
    """One measure of one task, or of their mean."""
    from matplotlib.ticker import LogLocator, NullLocator

    for label, style in styles.items():
        told = summary["methods"][label]["budgets"]
        points = [at["tasks"].get(panel, at)[name] for at in told.values()]
        budgets, middle = [float(b) for b in told], np.array([mean for mean, _ in points])
        axis.plot(budgets, middle, **style)
        if style["zorder"] > 2 and points[0][1] is not None:
            error = np.array([error for _, error in points])
            axis.fill_between(budgets, middle - error, middle + error, color=style["color"], alpha=0.15, linewidth=0)
    references = summary["references"]
    shown = [references[panel]] if panel in references else list(references.values())
    for prefix, (_, style) in _LEVELS.items():
        key = f"{prefix}_{'loss' if name == 'best_loss' else 'accuracy'}"
        if all(key in told for told in shown):
            axis.axhline(float(np.mean([told[key] for told in shown])), **style)
    if name == "best_loss":
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 1e3 * low else (1,)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.25)
