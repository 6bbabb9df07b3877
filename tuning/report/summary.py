"""A comparison's report from what lies in its folder: results.csv, summary.json, tables, curves.png, report.html.

Knows nothing of how trials were run.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from engine.errors import ArtifactError, KeyholeError
from engine.files import write_text
from tuning import settings_text
from tuning.compare import provenance
from tuning.compare.comparison import Comparison, make_comparison, trials_of
from tuning.compare.trial import ERROR, READS, TRIAL, UNBEGUN, UNFINISHED, Trial, looks
from tuning.report import html, plots
from tuning.report.headline import headline
from tuning.report.statistics import Interval, average, interval, mean_ranks, paired_tests
from tuning.report.tables import tables_of
from tuning.run_folder import HISTORY, RECIPE, RESULT

COLUMNS = (
    "task", "box", "method", "prompt", "head", "shots", "seed", "budget", "evaluations", "pairs", "test_pairs",
    "sequences", "image_encodes", "retries", "duplicates", "bytes", "cost", "test_images",
    "test_images_of", "zero_shot_accuracy", "accuracy", "val_accuracy", "train_loss", "base_accuracy", "new_accuracy",
    "seconds", "workers", "fingerprint", "version",
)  # fmt: skip
"""Of result.json, and first in results.csv."""
PROMPT = ("dim", "context_tokens", "contexts", "subspace")
"""What each method searched, as its trial noted it: dimensions d, context tokens M, 1 context or one per class."""
OURS = ("harmonic_mean", "gives", "label", "config", "search", "trial", "error", *PROMPT)
"""Last in results.csv: what a comparison adds."""
COUNTS = ("evaluations", "pairs", "test_pairs", "sequences", "image_encodes", "bytes", "retries", "duplicates",
          "cost", "seconds")  # fmt: skip


def remake(out: str | Path) -> dict[str, Any]:
    """Write all of the report; returns what summary.json holds. Raises ArtifactError where there is no comparison."""
    out = Path(out)
    comparison = settings_of(out)
    rows = rows_of(out, comparison)
    summary = summary_of(out, comparison, rows)
    write_text(out / "results.csv", _csv(rows))
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    drawn = plots.draw([(row, looks(out / "trials" / row["trial"])) for row in rows if not row["error"]], out)
    write_text(out / "report.html", html.render(out, comparison, summary, tables_of(comparison, summary), drawn))
    return summary


def settings_of(out: Path) -> Comparison:
    """The comparison's settings."""
    if not (out / "compare.yaml").is_file():
        raise ArtifactError(f"{out} holds no compare.yaml: name the folder of a `keyhole compare`")
    return make_comparison(settings_text.read(out / "compare.yaml", "comparison"))


def text(out: str | Path, summary: Mapping[str, Any]) -> str:
    """The headline and the tables for a terminal."""
    tables = (table.text() for table in tables_of(settings_of(Path(out)), summary, wide=False))
    return "\n\n".join((*(f"{told['found']} {told['sure']}".strip() for told in summary["headline"]), *tables))


def rows_of(out: Path, comparison: Comparison) -> list[dict[str, Any]]:
    """A row a trial, in the comparison's order: result.json, what was read besides, or why that is missing."""
    written = {path.parent.name: Trial.read(path.parent) for path in sorted((out / "trials").glob(f"*/{TRIAL}"))}
    try:
        planned = {trial.name: trial for trial in trials_of(comparison)}
    except KeyholeError:  # a method or a task of another installation: what was written is then all that is known
        planned = {}
    return [_row(out / "trials" / name, trial) for name, trial in {**planned, **written}.items()]


def _row(folder: Path, trial: Trial) -> dict[str, Any]:
    result, reads, error = (_json(folder / name) for name in (RESULT, READS, ERROR))
    recipe = dict(trial.recipe)
    method = recipe["method"]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {name: recipe.get(name) for name in ("task", "box", "shots", "seed", "budget", "head")}
    row["method"] = method["name"] if isinstance(method, dict) else method
    row |= result or {}
    if reads and reads["new"] is not None:
        row["new_accuracy"] = reads["new"]["accuracy"]
    base, new = row["base_accuracy"], row["new_accuracy"]
    row["harmonic_mean"] = None if base is None or new is None else 2 * base * new / max(base + new, 1e-12)
    row |= {name: (reads or {}).get("prompt", {}).get(name) for name in PROMPT}
    row["options"] = _options(recipe)
    for uri, read in (reads or {}).get("shift", {}).items():
        row[f"shift:{uri}"] = read["accuracy"]
    return row | {
        "gives": "+".join((reads or {}).get("gives", [])),
        "label": trial.label,
        "config": dict(trial.config),
        "search": trial.search,
        "trial": folder.name,
        "error": error["error"] if error else None if result and reads else _missing(folder),
    }


def _missing(folder: Path) -> str:
    return UNFINISHED if any((folder / name).exists() for name in (RECIPE, HISTORY, RESULT)) else UNBEGUN


def _options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What was set of a method and its prompt, and is in no column of its own."""
    method, prompt = recipe["method"], recipe["prompt"]
    own = {key: value for key, value in method.items() if key != "name"} if isinstance(method, dict) else {}
    return own | {key: prompt[key] for key in ("width", "grid") if prompt[key] is not None}


def _json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    shifts = sorted({name for row in rows for name in row if name.startswith("shift:")})
    names = [*COLUMNS, *shifts, *OURS]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row.get(name) for name in names)
        writer.writerow([json.dumps(cell) if isinstance(cell, dict) else cell for cell in cells])
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------


def summary_of(out: Path, comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means, intervals, ranks and tests, as plain values."""
    good = [row for row in rows if not row["error"]]
    blocks = list(dict.fromkeys((row["gives"], row["box"], row["shots"]) for row in good))
    found = [_block(block, _in(good, block)) for block in blocks]
    searches = [_json(path) for path in sorted((out / "search").glob("*/search.json"))]
    ran = provenance.sessions(out)
    return {
        "title": comparison.title,
        "headline": _headlines(comparison, found, searches),
        "trials": len(rows),
        "finished": len(good),
        "results": [entry for block in blocks for entry in _per_task(_in(good, block))],
        "blocks": found,
        "failed": [{"trial": row["trial"], "error": row["error"]} for row in rows if row["error"]],
        "searches": searches,
        "ran": ran,
        "seconds": sum(session["seconds"] or 0 for session in ran) or None,
        "versions": sorted({row["version"] for row in good}),
        "fingerprints": [json.loads(text) for text in sorted({json.dumps(row["fingerprint"]) for row in good})],
    }


def _headlines(
    comparison: Comparison, blocks: Sequence[Mapping[str, Any]], searches: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """What was found, of each block."""
    many_boxes, many_shots = len(comparison.boxes) > 1, len(comparison.shots) > 1
    return [
        headline(
            block,
            seeds=len(comparison.seeds),
            searches=[s for s in searches if (s["box"], s["shots"]) == (block["box"], block["shots"])],
            place=f" with {block['box']}" * many_boxes + f" and {block['shots']} shots a class" * many_shots,
        )
        for block in blocks
    ] or [{"found": "No run has finished yet.", "sure": ""}]


def _in(rows: Sequence[Mapping[str, Any]], block: tuple[str, str, int]) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["gives"], row["box"], row["shots"]) == block]


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))


def _per_task(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per task and method, over seeds."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for label in _labels(rows):
            mine = [row for row in rows if row["task"] == task and row["label"] == label]
            if not mine:
                continue
            first = mine[0]
            found.append(
                {
                    **{name: first[name] for name in ("task", "box", "shots", "gives")},
                    "method": label,
                    "name": first["method"],
                    "config": first["config"],
                    **{name: first[name] for name in ("prompt", "head", *PROMPT, "options")},
                    **_spread([row["accuracy"] for row in mine]),
                    **{name: average(mine, name) for name in
                       ("zero_shot_accuracy", "val_accuracy", "train_loss", "base_accuracy", "new_accuracy",
                        "harmonic_mean", *sorted(key for key in first if key.startswith("shift:")), *COUNTS)},
                }
            )  # fmt: skip
    return found


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """How many values, and what `interval` says of them: nothing where there are none."""
    facts = asdict(interval(values)) if values else {field.name: None for field in fields(Interval)} | {"n": 0}
    return {"seeds": facts.pop("n"), **facts}


def _block(block: tuple[str, str, int], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One box and number of shots: methods over all tasks, and the tests between them."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = {
        label: {(row["task"], row["seed"]): row["accuracy"] for row in rows if row["label"] == label}
        for label in _labels(rows)
    }
    ranks = mean_ranks(cells)
    methods = []
    for label, mine in cells.items():
        by_seed: dict[int, list[float]] = {}
        for (_, seed), accuracy in mine.items():
            by_seed.setdefault(seed, []).append(accuracy)
        # The interval is over seeds, each the mean of its tasks: how the average would move with other samples.
        whole = [sum(values) / len(values) for values in by_seed.values() if len(values) == len(tasks)]
        own = [row for row in rows if row["label"] == label]
        methods.append(
            {
                "method": label,
                "name": own[0]["method"],
                **_spread(whole),
                "tasks": len({row["task"] for row in own}),
                "rank": ranks.get(label),
                **{name: average(own, name) for name in ("zero_shot_accuracy", *COUNTS)},
            }
        )
    gives, box, shots = block
    return {
        "gives": gives, "box": box, "shots": shots, "tasks": tasks, "methods": methods,
        "tests": paired_tests(cells, draw=lambda cell: cell[1]),
    }  # fmt: skip
