"""The pictures of a comparison: how loss and validation fell with evaluations and pairs, and where runs ended on test.

Knows nothing of how numbers were made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import replacing
from engine.protocols import Array
from tuning.report.statistics import interval
from tuning.report.terminal_table import count

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F4F24", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind readers; markers and dashes tell the same again."""
ZERO_SHOT = {"color": "#666666", "linestyle": (0, (2, 2)), "linewidth": 1.2, "label": "zero-shot, the template"}
"""Of the line in every panel of accuracies."""
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":")
ACROSS = 3
"""Most panels side by side."""
CURVES, SHOTS = "curves.png", "shots.png"

Run = tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""A row of results.csv and the lines of its history.jsonl."""


def draw(runs: Sequence[Run], out: Path) -> list[str]:
    """Write curves.png, and shots.png where shots differ; the names of what was written."""
    for name in (CURVES, SHOTS):
        (out / name).unlink(missing_ok=True)
    if not runs:
        return []
    import matplotlib

    matplotlib.use("Agg")
    labels = list(dict.fromkeys(row["label"] for row, _ in runs))
    styles = {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
        }
        for i, label in enumerate(labels)
    }
    _curves(runs, styles, out / CURVES)
    written = [CURVES]
    if len({row["shots"] for row, _ in runs}) > 1:
        _shots(runs, styles, out / SHOTS)
        written.append(SHOTS)
    return written


def _curves(runs: Sequence[Run], styles: Mapping[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["task"], row["box"], row["shots"]) for row, _ in runs))
    bands = -(-len(panels) // ACROSS)
    across = min(len(panels), ACROSS)
    tall = 1.1 + 0.23 * len(styles)
    figure = plt.figure(figsize=(max(7.5, 4.1 * across + 0.6), bands * (5.2 + tall) + 0.8), layout="constrained")
    grid = figure.add_gridspec(3 * bands, across, height_ratios=(2.4, 2.4, tall) * bands)
    many_boxes, many_shots = len({p[1] for p in panels}) > 1, len({p[2] for p in panels}) > 1
    for number, panel in enumerate(panels):
        band, column = divmod(number, across)
        mine = [run for run in runs if (run[0]["task"], run[0]["box"], run[0]["shots"]) == panel]
        axes = [figure.add_subplot(grid[3 * band + line, column]) for line in range(3)]
        title = _lines(panel[0]) + f"\n{_lines(panel[1])}" * many_boxes + f"\n{panel[2]} shots" * many_shots
        _against_evaluations(axes[0], mine, "best_loss", styles)
        low, high = axes[0].get_ylim()
        if low <= 0 or high > 10 * low:
            axes[0].set_yscale("log")
            axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes[0].set_title(title, fontsize=11)
        _against_evaluations(axes[1], mine, "val_accuracy", styles)
        # The template is the first candidate of every search, and the first that validation is read for.
        read = [history[0]["val_accuracy"] for _, history in mine if history]
        first = [value for value in read if value is not None]
        if first:
            axes[1].axhline(float(np.mean(first)), **ZERO_SHOT)
        axes[1].set_xlabel("evaluations")
        _ends(axes[2], mine, styles)
        if column == 0:
            axes[0].set_ylabel("training loss, best so far")
            axes[1].set_ylabel("validation accuracy\nof what is kept so far")
        images = next((row["pairs"] / row["evaluations"] for row, _ in mine if row["evaluations"]), 1.0)
        top = axes[0].secondary_xaxis("top", functions=(lambda x, n=images: x * n, lambda x, n=images: x / n))
        top.set_xlabel("pairs", fontsize=8)
        top.tick_params(labelsize=7)
        top.xaxis.set_major_formatter(lambda value, _: count(value))
    handles = [plt.Line2D([], [], label=label, markersize=5, **style) for label, style in styles.items()]
    handles.append(plt.Line2D([], [], **ZERO_SHOT))
    figure.legend(handles=handles, loc="outside lower center", ncol=min(4, len(handles)), frameon=False, fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _lines(uri: str) -> str:
    """A URI with its options on a line of their own: side by side, long titles run into each other."""
    return uri.replace("?", "\n?", 1)


def _against_evaluations(axis: Any, runs: Sequence[Run], name: str, styles: Mapping[str, Any]) -> None:
    """Mean over seeds at every evaluation, the band from the lowest to the highest seed."""
    for label, style in styles.items():
        series = [_series(history, name) for row, history in runs if row["label"] == label]
        series = [pair for pair in series if len(pair[0])]
        if not series:
            continue
        end = min(xs[-1] for xs, _ in series)
        start = max(xs[0] for xs, _ in series)
        grid = np.unique(np.clip(np.concatenate([xs for xs, _ in series]), start, end))
        table = np.stack([_at(grid, xs, ys) for xs, ys in series])
        axis.plot(grid, table.mean(0), drawstyle="steps-post", linewidth=1.5, markevery=0.2, markersize=4.5, **style)
        shade = 0.12 if len(styles) <= 5 else 0.05  # many bands on each other are mud
        axis.fill_between(grid, table.min(0), table.max(0), step="post", color=style["color"], alpha=shade, linewidth=0)
    axis.grid(alpha=0.25)
    axis.set_xlim(left=0)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    """Evaluations and values; for validation, of the look with the lowest loss so far, which is what is kept."""
    xs, ys = [], []
    lowest, kept = float("inf"), None
    for line in history:
        if name == "val_accuracy":
            if line["val_loss"] is None or line["val_accuracy"] is None:
                continue
            if line["val_loss"] < lowest:
                lowest, kept = line["val_loss"], line["val_accuracy"]
            value = kept
        else:
            value = line[name]
        if value is not None and np.isfinite(value):
            xs.append(line["evaluations"])
            ys.append(value)
    return np.array(xs), np.array(ys)


def _at(grid: Array, xs: Array, ys: Array) -> Array:
    """A step function's values: what was last known."""
    return ys[np.clip(np.searchsorted(xs, grid, side="right") - 1, 0, len(ys) - 1)]


def _ends(axis: Any, runs: Sequence[Run], styles: Mapping[str, Any]) -> None:
    """Test accuracy of every method, without query or with: seeds as small marks, mean and interval."""
    present = [label for label in styles if any(row["label"] == label for row, _ in runs)]
    for place, label in enumerate(present):
        values = [100 * row["accuracy"] for row, _ in runs if row["label"] == label]
        told, style = interval(values), styles[label]
        y = len(present) - place
        axis.plot(values, [y] * len(values), "|", color=style["color"], markersize=7, alpha=0.7)
        axis.plot([told.mean], [y], style["marker"], color=style["color"], markersize=6)
        if told.low is not None and told.high is not None:
            axis.plot([told.low, told.high], [y, y], "-", color=style["color"], linewidth=1.6)
    axis.axvline(100 * _zero_shot(runs), **ZERO_SHOT)
    axis.set_yticks(range(len(present), 0, -1), present, fontsize=8)
    axis.set_ylim(0.4, len(present) + 0.6)
    # Three seeds can give intervals as wide as the axis: the seeds themselves set its range.
    every = [*(100 * row["accuracy"] for row, _ in runs), 100 * _zero_shot(runs)]
    margin = max(1.0, 0.15 * (max(every) - min(every)))
    axis.set_xlim(min(every) - margin, max(every) + margin)
    axis.set_xlabel("test accuracy at the end, %")
    axis.grid(axis="x", alpha=0.25)


def _zero_shot(runs: Sequence[Run]) -> float:
    """Test accuracy of the template, which every run reads besides its own."""
    return float(np.mean([row["zero_shot_accuracy"] for row, _ in runs]))


def _shots(runs: Sequence[Run], styles: Mapping[str, Any], path: Path) -> None:
    """Test accuracy against shots, a panel a task."""
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((row["task"], row["box"]) for row, _ in runs))
    across = min(len(panels), ACROSS)
    size = (max(6.0, 3.6 * across), 3.4 * -(-len(panels) // across) + 0.6)
    figure, axes = plt.subplots(-(-len(panels) // across), across, figsize=size, squeeze=False, layout="constrained")
    shots = sorted({row["shots"] for row, _ in runs})
    for axis, panel in zip(axes.flat, panels, strict=False):
        for label, style in styles.items():
            told = []
            for number in shots:
                here = (*panel, number, label)
                values = [
                    100 * row["accuracy"]
                    for row, _ in runs
                    if (row["task"], row["box"], row["shots"], row["label"]) == here
                ]
                if values:
                    told.append((number, float(np.mean(values)), min(values), max(values)))
            if told:
                xs, means, lows, highs = map(np.array, zip(*told, strict=True))
                axis.plot(xs, means, linewidth=1.5, markersize=5, **style)
                axis.fill_between(xs, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
        axis.axhline(100 * _zero_shot([run for run in runs if (run[0]["task"], run[0]["box"]) == panel]), **ZERO_SHOT)
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, [str(number) for number in shots])
        axis.set_title(_lines(panel[0]) + "\non " + _lines(panel[1]), fontsize=10)
        axis.set_xlabel("shots a class")
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    axes[0][0].set_ylabel("test accuracy, %")
    handles = [plt.Line2D([], [], label=label, markersize=5, **style) for label, style in styles.items()]
    handles.append(plt.Line2D([], [], **ZERO_SHOT))
    figure.legend(handles=handles, loc="outside lower center", ncol=min(4, len(handles)), frameon=False, fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)
