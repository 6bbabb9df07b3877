"""The tables of a report: what stands beside what.

Knows nothing of files, and of how a table is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tuning.compare.comparison import Comparison
from tuning.compare.sweep_spaces import in_words
from tuning.data.corruptions import without_degradations
from tuning.report.statistics import average
from tuning.report.terminal_table import Table, count, percent

NARROW = 4
"""Most tasks that a terminal shows in columns of their own."""


def tables_of(comparison: Comparison, summary: Mapping[str, Any], *, wide: bool = True) -> list[Table]:
    """All tables of a report, in the order to be read; `wide` has a column for every task."""
    results = summary["results"]
    tables = [_block(block, results, wide) for block in summary["blocks"]]
    if wide and results:
        tables.append(_prompts(results, summary["searches"]))
    tables += [_tests(block) for block in summary["blocks"] if wide and block["tests"]]
    tables += [table for table in (_shots(results), _base_to_new(results), _shift(results)) if table]
    tables += _degraded(results, "task") + _degraded(results, "box")
    if summary["searches"]:
        tables.append(_searches(summary["searches"]))
    if comparison.published:
        tables.append(_published(comparison, summary))
    if summary["failed"]:
        tables.append(_failed(summary["failed"]))
    return tables


def _failed(failed: Sequence[Mapping[str, Any]]) -> Table:
    """A row a reason: a method that a box refuses is refused for every seed."""
    whys: dict[str, list[str]] = {}
    for entry in failed:
        whys.setdefault(entry["error"], []).append(entry["trial"])
    rows = (
        (trials[0] + f" and {len(trials) - 1} more" * (len(trials) > 1), why)
        for why, trials in whys.items()
    )  # fmt: skip
    return Table(title="Not finished", left=2, columns=("trial", "why"), rows=tuple(rows))


def _spread(entry: Mapping[str, Any] | None) -> str:
    """Mean and half of the interval from three seeds on; the range of two; one value alone."""
    if entry is None or entry["mean"] is None:
        return "-"
    if entry["high"] is not None:
        return percent(entry["mean"], entry["high"] - entry["mean"])
    return percent(entry["mean"]) + (
        f" ({percent(entry['lowest'])} to {percent(entry['highest'])})" if entry["seeds"] > 1 else ""
    )


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
                *(_spread(cell) for cell in cells),
                _spread(method),
                str(method["seeds"]),
                count(method["evaluations"]),
                count(method["pairs"]),
                f"{method['seconds']:.1f}" if method["seconds"] is not None else "-",
                "-" if method["rank"] is None else f"{method['rank']:.2f}",
            )
        )
    several = len(block["tasks"]) > 1
    return Table(
        title=f"{block['box']}, which gives {block['gives'].replace('+', ', ')}; {block['shots']} shots a class"
        + ("" if several else f"; {block['tasks'][0]}"),
        columns=("method", *tasks, "average" if several else "accuracy", "seeds", "evaluations", "pairs", "seconds",
                 "rank"),
        rows=tuple(rows),
        note="Test accuracy in %, mean over seeds: ± half of its 95 % interval (Student t) from three seeds on, the "
        "range of two, one value alone. Evaluations, pairs and seconds are means of a run; rank is the mean over tasks "
        "and seeds, 1 the best.",
        best=_best(values, offset=1),
    )  # fmt: skip


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
        note="Paired t tests over task x seed, from three seeds on, corrected for their number by Holm's method; * "
        "marks p < 0.05. They speak of these tasks: with few of them, not of tasks at large.",
    )


def _crossed(title: str, results: Sequence[Mapping[str, Any]], kind: str, names: Mapping[Any, str], note: str) -> Table:
    """Methods down; across, under their `names`, the mean accuracies for each value of `kind`."""
    methods = list(dict.fromkeys(entry["method"] for entry in results))
    values = [
        [average([e for e in results if (e["method"], e[kind]) == (method, value)], "mean") for value in names]
        for method in methods
    ]
    return Table(
        title=title,
        columns=("method", *names.values()),
        rows=tuple((method, *(percent(value) for value in row)) for method, row in zip(methods, values, strict=True)),
        note=note,
        best=_best(values, offset=1),
    )


def listed(
    title: str,
    results: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    form: Callable[[float | None], str],
    note: str,
) -> Table:
    """A row for each entry: method, task, box and shots where there are several, then `names` (heading -> key)."""
    places = ["task", *(kind for kind in ("box", "shots") if len({entry[kind] for entry in results}) > 1)]
    return Table(
        title=title,
        left=1 + len(places),
        columns=("method", *places, *names),
        rows=tuple(
            (e["method"], *(str(e[place]) for place in places), *(form(e.get(name)) for name in names.values()))
            for e in results
        ),
        note=note,
    )


def _shared(results: Sequence[Mapping[str, Any]], *kinds: str) -> list[Mapping[str, Any]]:
    """The entries of those tasks or boxes that took the most methods: means over others compare unlike things."""
    took: dict[tuple[Any, ...], set[str]] = {}
    for entry in results:
        took.setdefault(tuple(entry[kind] for kind in kinds), set()).add(entry["method"])
    most = max(map(len, took.values()))
    return [entry for entry in results if len(took[tuple(entry[kind] for kind in kinds)]) == most]


def _shots(results: Sequence[Mapping[str, Any]]) -> Table | None:
    shots = sorted({entry["shots"] for entry in results})
    if len(shots) < 2:
        return None
    note = "Means over seeds and over the tasks and boxes that took the most methods, in %."
    return _crossed("By shots", _shared(results, "task", "box"), "shots", {n: f"{n} shots" for n in shots}, note)


def _base_to_new(results: Sequence[Mapping[str, Any]]) -> Table | None:
    if all(entry["base_accuracy"] is None for entry in results):
        return None
    return listed(
        "Base to new",
        results,
        {"base": "base_accuracy", "new": "new_accuracy", "harmonic mean": "harmonic_mean"},
        percent,
        "Tuned on the first half of the classes, in % on the test images of that half and of the other. "
        "A head knows only the classes it was trained on, so it has no new ones.",
    )


def _shift(results: Sequence[Mapping[str, Any]]) -> Table | None:
    targets = sorted({key for entry in results for key in entry if key.startswith("shift:")})
    if not targets:
        return None
    return listed(
        "Tuned on one task, tested on others",
        results,
        {"there": "mean", **{target.removeprefix("shift:"): target for target in targets}},
        percent,
        "Means over seeds, in %; - where the artifact does not carry over (a head knows only its own classes).",
    )


def _degraded(results: Sequence[Mapping[str, Any]], kind: str) -> list[Table]:
    """Method by degradation, for each task or box that is compared in several states."""
    families: dict[str, list[str]] = {}
    for uri in dict.fromkeys(entry[kind] for entry in results):
        families.setdefault(without_degradations(uri), []).append(uri)
    tables = []
    other = "box" if kind == "task" else "task"
    for plain, uris in families.items():
        if len(uris) < 2:
            continue
        mine = _shared([entry for entry in results if entry[kind] in uris], other)
        names = {uri: uri[len(plain) :].lstrip("?&") or "as it is" for uri in uris}
        where = ", ".join(dict.fromkeys(entry[other] for entry in mine))
        note = f"Means over seeds, in %, with {where}; - where a method was refused."
        tables.append(_crossed(f"{plain}, degraded", mine, kind, names, note))
    return tables


def _prompts(results: Sequence[Mapping[str, Any]], searches: Sequence[Mapping[str, Any]]) -> Table:
    """A row a method, or several where what it searched differs by task or box."""
    many_boxes = len({e["box"] for e in results}) > 1
    found: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for e in results:
        places = found.setdefault(e["method"], {}).setdefault((*_searched(e), *_settings(e, searches)), [])
        places.append(e["task"] + f" on {e['box']}" * many_boxes)
    split = any(len(rows) > 1 for rows in found.values())

    def where(rows: Mapping[tuple[str, ...], list[str]], facts: tuple[str, ...]) -> list[str]:
        return ([", ".join(dict.fromkeys(rows[facts]))] if len(rows) > 1 else ["wherever it ran"]) * split

    return Table(
        title="What each method searched",
        left=10,
        columns=("method", *["where"] * split, "prompt", "tokens", "contexts", "dimensions", "subspace", "head",
                 "settings", "chosen"),
        rows=tuple((method, *where(rows, facts), *facts) for method, rows in found.items() for facts in rows),
        note="Tokens are the context vectors of a text prompt; contexts: one shared by all classes, or one for each. "
        "Dimensions is d, the length of the vector that is searched. Settings that are not named are the method's own.",
    )  # fmt: skip


def _searched(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if entry["prompt"] is None:
        kind = "by gradients" if entry["name"].startswith("ceiling:") else "the template"
        return (kind, "-", "-", "-", "-", entry["head"] or "-")
    contexts = {None: "-", 1: "shared"}.get(entry["contexts"], f"one a class ({entry['contexts']})")
    known = (entry["context_tokens"], contexts, entry["dim"], entry["subspace"])
    return (entry["prompt"], *("-" if fact is None else str(fact) for fact in known), entry["head"] or "-")


def _settings(entry: Mapping[str, Any], searches: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Which settings a method was given, and who chose them."""
    shared = ("task", "box", "shots", "method")
    search = _find(searches, **{name: entry[name] for name in shared})
    given = {**entry["options"], **{path: value for path, value in entry["config"].items() if "method." not in path}}
    words = in_words(given) or "the method's own"
    if search is not None and search["chosen"]:
        return words, f"by the lowest validation loss of {search['runs']} runs ({search['searcher']})"
    return words, "in the comparison's settings" if given else "-"


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
