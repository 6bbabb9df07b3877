"""The tables of a report, as rows of text that a terminal and a page both show.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.degrade import without_degradations
from tuning.protocol import Comparison

NARROW = 4
"""Most tasks that a terminal shows in columns of their own."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A heading, columns and rows; cells are text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: int = 1
    """Leading columns that hold words and not numbers."""
    best: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) to set in bold."""

    def text(self) -> str:
        """For a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.columns))]
        shown = [
            "  ".join(
                cell.ljust(width) if i < self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in lines
        ]
        rule = "-" * len(shown[0])
        return "\n".join([self.title, rule, shown[0].rstrip(), rule, *(line.rstrip() for line in shown[1:]), rule]
                         + ([self.note] if self.note else []))  # fmt: skip


def percent(mean: float | None, half: float | None = None) -> str:
    """`81.2 ±1.3`: percent with half the interval's width.

    >>> percent(0.8123, 0.0131)
    '81.2 ±1.3'
    """
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if half is None else f" ±{100 * half:.1f}")


def count(value: float | None) -> str:
    """`12.3k`, `4.5M`: how much, in four characters or so.

    >>> count(1234567), count(80.04), count(None)
    ('1.23M', '80', '-')
    """
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}" if value / scale < 1000 else f"{value / scale:.0f}{unit}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def tables_of(comparison: Comparison, summary: Mapping[str, Any], *, wide: bool = True) -> list[Table]:
    """All tables of a report, in the order to be read; `wide` has a column for every task."""
    results = summary["results"]
    tables = [_block(block, results, wide) for block in summary["blocks"]]
    tables += [_tests(block) for block in summary["blocks"] if wide and block["tests"]]
    tables += [table for table in (_shots(results), _base_to_new(results), _shift(results)) if table]
    tables += _degraded(results, "task") + _degraded(results, "box")
    if summary["searches"]:
        tables.append(_searches(summary["searches"]))
    if comparison.published:
        tables.append(_published(comparison, summary))
    if summary["failed"]:
        tables.append(
            Table(
                title="Not finished",
                left=2,
                columns=("trial", "why"),
                rows=tuple((entry["trial"], entry["error"]) for entry in summary["failed"]),
            )
        )
    return tables


def _half(entry: Mapping[str, Any]) -> float | None:
    return None if entry["high"] is None else entry["high"] - entry["mean"]


def _find(results: Sequence[Mapping[str, Any]], **want: Any) -> Mapping[str, Any] | None:
    return next((entry for entry in results if all(entry[key] == value for key, value in want.items())), None)


def _block(block: Mapping[str, Any], results: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    tasks = block["tasks"] if len(block["tasks"]) > 1 and (wide or len(block["tasks"]) <= NARROW) else []
    rows, values = [], []
    for method in block["methods"]:
        cells = [_find(results, task=task, box=block["box"], shots=block["shots"], method=method["method"])
                 for task in tasks]  # fmt: skip
        values.append([None if cell is None else cell["mean"] for cell in cells] + [method["mean"]])
        rows.append(
            (
                method["method"],
                *("-" if cell is None else percent(cell["mean"], _half(cell)) for cell in cells),
                percent(method["mean"], None if method["mean"] is None else _half(method)),
                count(method["evaluations"]),
                count(method["pairs"]),
                f"{method['seconds']:.1f}" if method["seconds"] is not None else "-",
                "-" if method["rank"] is None else f"{method['rank']:.2f}",
            )
        )
    several = len(block["tasks"]) > 1
    seeds = max((method["seeds"] for method in block["methods"]), default=0)
    return Table(
        title=f"{block['box']}, which gives {block['gives'].replace('+', ', ')}; {block['shots']} shots a class"
        + ("" if several else f"; {block['tasks'][0]}"),
        columns=("method", *tasks, "average" if several else "accuracy", "evaluations", "pairs", "seconds", "rank"),
        rows=tuple(rows),
        note=f"Test accuracy in %, ± half of the 95 % interval of the mean over {seeds} seeds (Student t); "
        "evaluations, pairs and seconds are means of a run; rank is the mean over tasks and seeds, 1 the best.",
        best=_best(values, offset=1),
    )


def _best(values: Sequence[Sequence[float | None]], offset: int) -> frozenset[tuple[int, int]]:
    found = set()
    for column in range(len(values[0]) if values else 0):
        present = [row[column] for row in values if row[column] is not None]
        found |= {(i, column + offset) for i, row in enumerate(values) if present and row[column] == max(present)}
    return frozenset(found)


def _tests(block: Mapping[str, Any]) -> Table:
    rows = sorted(block["tests"], key=lambda row: (row["p_holm"], -row["difference"]))
    return Table(
        title=f"Paired tests, {block['box']}, {block['shots']} shots",
        left=2,
        columns=("better", "worse", "difference", "95 % interval", "cells", "p", "p (Holm)"),
        rows=tuple(
            (
                row["better"],
                row["worse"],
                f"{100 * row['difference']:.2f}",
                f"{100 * row['low']:.2f} to {100 * row['high']:.2f}",
                str(row["cells"]),
                f"{row['p']:.2g}",
                f"{row['p_holm']:.2g}" + (" *" if row["p_holm"] < 0.05 else ""),
            )
            for row in rows
        ),
        note="Paired t tests over task x seed, corrected for their number by Holm's method; * marks p < 0.05. "
        "They speak of these tasks: with few of them, not of tasks at large.",
    )


def _crossed(
    title: str,
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    cells: Mapping[tuple[str, str], Any],
    note: str,
) -> Table:
    """Methods down, `names` across."""
    methods = list(dict.fromkeys(entry["method"] for entry in results))
    values = [[cells.get((method, name)) for name in names] for method in methods]
    return Table(
        title=title,
        columns=("method", *names),
        rows=tuple((method, *(percent(value) for value in row)) for method, row in zip(methods, values, strict=True)),
        note=note,
        best=_best(values, offset=1),
    )


def _average(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return sum(values) / len(values) if values else None


def _shots(results: Sequence[Mapping[str, Any]]) -> Table | None:
    shots = sorted({entry["shots"] for entry in results})
    if len(shots) < 2:
        return None
    cells = {
        (method, f"{number} shots"): _average(
            [e for e in results if e["method"] == method and e["shots"] == number], "mean"
        )
        for method in {e["method"] for e in results}
        for number in shots
    }
    names = [f"{number} shots" for number in shots]
    return _crossed("By shots", results, names, cells, "Means over tasks, boxes and seeds, in %.")


def _base_to_new(results: Sequence[Mapping[str, Any]]) -> Table | None:
    if all(entry["base_accuracy"] is None for entry in results):
        return None
    rows = [
        (e["method"], e["task"], percent(e["base_accuracy"]), percent(e["new_accuracy"]), percent(e["harmonic_mean"]))
        for e in results
    ]
    return Table(
        title="Base to new",
        left=2,
        columns=("method", "task", "base", "new", "harmonic mean"),
        rows=tuple(rows),
        note="Tuned on the first half of the classes, in % on the test images of that half and of the other. "
        "A head knows only the classes it was trained on, so it has no new ones.",
    )


def _shift(results: Sequence[Mapping[str, Any]]) -> Table | None:
    targets = sorted({key for entry in results for key in entry if key.startswith("shift:")})
    if not targets:
        return None
    rows = [
        (e["method"], e["task"], percent(e["mean"]), *(percent(e.get(target)) for target in targets)) for e in results
    ]
    return Table(
        title="Tuned on one task, tested on others",
        left=2,
        columns=("method", "tuned on", "there", *(target.removeprefix("shift:") for target in targets)),
        rows=tuple(rows),
        note="Means over seeds, in %; - where the artifact does not carry over (a head knows only its own classes).",
    )


def _degraded(results: Sequence[Mapping[str, Any]], kind: str) -> list[Table]:
    """Method by degradation, for each task or box that is compared in several states."""
    families: dict[str, list[str]] = {}
    for uri in dict.fromkeys(entry[kind] for entry in results):
        families.setdefault(without_degradations(uri), []).append(uri)
    tables = []
    for plain, uris in families.items():
        if len(uris) < 2:
            continue
        mine = [entry for entry in results if entry[kind] in uris]
        names = {uri: uri[len(plain) :].lstrip("?&") or "as it is" for uri in uris}
        cells = {
            (method, names[uri]): _average([e for e in mine if e["method"] == method and e[kind] == uri], "mean")
            for method in {e["method"] for e in mine}
            for uri in uris
        }
        note = f"Means over {'boxes' if kind == 'task' else 'tasks'} and seeds, in %; - where a method was refused."
        tables.append(_crossed(f"{plain}, degraded", mine, list(names.values()), cells, note))
    return tables


def _searches(searches: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="Settings chosen on validation, before and apart from the comparison",
        left=4,
        columns=("method", "task", "box", "chosen", "runs", "evaluations", "pairs", "seconds"),
        rows=tuple(
            (s["method"], s["task"], s["box"], s["in_words"], str(s["runs"]), count(s["evaluations"]),
             count(s["pairs"]), f"{s['seconds']:.1f}") for s in searches
        ),
        note="Totals of each search; none of them is in the tables above. Who compares at equal cost adds them.",
    )  # fmt: skip


def _published(comparison: Comparison, summary: Mapping[str, Any]) -> Table:
    tasks = list(dict.fromkeys(task for entry in comparison.published for task in entry.get("accuracy", {})))
    rows = []
    for block in summary["blocks"]:
        for method in block["methods"]:
            mine = {e["task"]: e for e in summary["results"] if e["method"] == method["method"]
                    and e["box"] == block["box"] and e["shots"] == block["shots"]}  # fmt: skip
            found = {task: next((e["mean"] for uri, e in mine.items() if _same(task, uri)), None) for task in tasks}
            here = [value for value in found.values() if value is not None]
            cells = ("not run here" if found[t] is None else percent(found[t]) for t in tasks)
            rows.append(
                (f"{method['method']} (here)", *cells,
                 percent(sum(here) / len(here)) if len(here) == len(tasks) else "not run here",
                 count(method["evaluations"]), f"{block['box']}, {method['seeds']} seeds")
            )  # fmt: skip
    for entry in comparison.published:
        values = entry.get("accuracy", {})
        mean = entry.get("average", sum(values.values()) / len(values) if len(values) == len(tasks) else None)
        rows.append((entry["name"], *(percent(values.get(t)) for t in tasks), percent(mean),
                     str(entry.get("evaluations", "-")), entry.get("source", "")))  # fmt: skip
    return Table(
        title="Beside published numbers",
        columns=("method", *tasks, "average", "evaluations", "box or source"),
        rows=tuple(rows),
        note="Published numbers are others' own, of other seeds and pipelines, with what their budgets come to in "
        "evaluations (one candidate on the whole few-shot set); 'not run here' means just that.",
    )


def _same(task: str, uri: str) -> bool:
    """Whether a published task's short name is that of a URI's folder."""
    return task in uri.partition("?")[0].replace(":", "/").split("/")
