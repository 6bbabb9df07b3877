"""The pictures of `keyhole bench search`: curves of every task, and the one panel of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.search.arms import COOP, TEMPLATE
from bench.search.tables import mean_and_error, mean_reference, values
from engine.files import replacing
from tuning.report.plots import COLOURS, DASHES, MARKERS
from tuning.report.terminal_table import count

HIGHLIGHTED = 4
"""Methods that stand out among many: the first ones."""
LEVELS: dict[str, tuple[str, dict[str, Any]]] = {
    TEMPLATE: ("zero-shot", {"color": "black", "linestyle": ":", "linewidth": 1.0}),
    COOP: ("CoOp (white box)", {"color": "black", "linestyle": (0, (6, 2)), "linewidth": 1.0}),
}
"""Horizontal lines of the curves."""


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------------
# One panel


def headline(rows: Sequence[Mapping[str, Any]], path: Path, levels: Mapping[str, float]) -> None:
    """Test accuracy against evaluations, the mean over tasks and seeds: a line a method, named at its end.

    The title says with how many evaluations the first method has the best accuracy of the others, if it comes to that.

    Args:
        rows: Trials with `label`, `budget`, `task`, `seed` and `accuracy`; the first label is the one that stands out.
        path: The PNG to write.
        levels: Accuracies of what needs no search, by name: horizontal lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    budgets = sorted(values(rows, "budget"))
    figure, axis = plt.subplots(figsize=(8.0, 4.6), layout="constrained", facecolor="white")
    ends, lines = [], {}
    for number, label in enumerate(values(rows, "label")):
        mine = [row for row in rows if row["label"] == label]
        xs = sorted(values(mine, "budget"))
        points = [mean_and_error([row for row in mine if row["budget"] == x], "accuracy") for x in xs]
        ys, errors = (100 * np.array([point[i] or 0.0 for point in points]) for i in (0, 1))
        colour, first = COLOURS[number % len(COLOURS)], number == 0
        axis.plot(xs, ys, "o-", color=colour, linewidth=3.0 if first else 1.8, markersize=6 if first else 4, zorder=3,
                  clip_on=False)  # fmt: skip
        axis.fill_between(xs, ys - errors, ys + errors, color=colour, alpha=0.15, linewidth=0)
        ends.append((xs[-1], ys[-1], label, {"color": colour, "weight": "bold" if first else "normal"}))
        lines[label] = dict(zip(xs, ys, strict=True))
    for name, level in levels.items():
        axis.axhline(100 * level, color="0.5", linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
        ends.append((budgets[-1], 100 * level, name, {"color": "0.35"}))
    axis.set_xscale("log")
    axis.set_xlim(0.9 * budgets[0], budgets[-1])
    axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("evaluations: candidate prompts sent to the model")
    tasks, seeds = (len(values(rows, name)) for name in ("task", "seed"))
    axis.set_title(f"test accuracy in %, mean of {tasks} tasks and {seeds} seeds", loc="left", fontsize=10, color="0.3")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    figure.suptitle(_claim(lines), x=0.01, ha="left", fontsize=13, weight="bold")
    _name(axis, ends)
    _save(figure, path)


def _claim(lines: Mapping[str, Mapping[float, float]]) -> str:
    """With how many evaluations the first line reaches the best that another has; nothing where it needs no fewer."""
    ours, *others = lines
    best, late = max(((y, x) for name in others for x, y in lines[name].items()), default=(np.inf, 0.0))
    early = min((x for x, y in lines[ours].items() if y >= best), default=late)
    return f"{ours} has with {early:g} evaluations what the others have with {late:g}" if early < late else ""


def _name(axis: Any, ends: Sequence[tuple[float, float, str, dict[str, Any]]]) -> None:
    """Names at the right ends (x, y, name, style) of lines, moved apart where they would lie on each other."""
    low, high = axis.get_ylim()
    gap = (high - low) / 17
    for end in {x for x, *_ in ends}:
        mine = sorted((it for it in ends if it[0] == end), key=lambda it: it[1])
        places = np.array([y for _, y, *_ in mine])
        for _ in range(100):
            short = np.maximum(gap - np.diff(places), 0) / 2
            places[:-1] -= short
            places[1:] += short
        for y, (_, _, name, style) in zip(places, mine, strict=True):
            axis.annotate(name, (end, y), (8, 0), textcoords="offset points", va="center", annotation_clip=False,
                          **style)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# A panel a task


def curves(summary: Mapping[str, Any], path: Path) -> None:
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
    handles += [plt.Line2D([], [], label=label, **style) for label, style in LEVELS.values()]
    across = int(figure.get_figwidth() / (0.8 + 0.07 * max(len(str(handle.get_label())) for handle in handles)))
    figure.legend(handles=handles, loc="outside lower center", ncol=max(1, across), frameon=False, fontsize=9)
    _save(figure, path)


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
    shown = {panel: references[panel]} if panel in references else references
    for reference, (_, style) in LEVELS.items():
        level = mean_reference(shown, reference, "loss" if name == "best_loss" else "accuracy")
        if level is not None:
            axis.axhline(level, **style)
    if name == "best_loss":
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 1e3 * low else (1,)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.25)
