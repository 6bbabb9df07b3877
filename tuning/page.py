"""report.html: one file that can be sent to a colleague. No script, no link to anything outside; prints well.

Knows nothing of how numbers were made.
"""

from __future__ import annotations

import base64
import html
import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from tuning.protocol import Comparison
from tuning.table import Table, count
from tuning.tables import places_of

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: #1b1b1b; background: #fff;
       max-width: 72rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p.lead { color: #444; margin: 0 0 1rem; }
p.note { color: #555; font-size: .85rem; margin: .4rem 0 0; max-width: 60rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; white-space: normal; }
td.words { white-space: normal; text-align: left; max-width: 44rem; }
thead { border-top: 2px solid #222; border-bottom: 1px solid #222; } tbody { border-bottom: 2px solid #222; }
tbody tr:nth-child(even) { background: #f5f6f8; } td.best { font-weight: 700; }
img { max-width: 100%; height: auto; } figure { margin: 0; } figcaption { color: #555; font-size: .85rem; }
pre { background: #f5f6f8; padding: .7rem .9rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
details summary { cursor: pointer; font-weight: 600; } footer { color: #666; font-size: .8rem; margin: 2.5rem 0 1rem; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } h2 { break-after: avoid; }
  table, figure { break-inside: avoid; } details > * { display: block; } div.wide { overflow: visible; } }
"""

CAPTIONS = {
    "curves.png": "An evaluation is one prompt on the whole training set, a pair one prompt with one image. Lines are "
    "means over seeds, bands run from the lowest to the highest seed. Bottom: where the runs "
    "ended on the test split, which is read once; ticks are seeds, lines the 95 % intervals "
    "of the mean (cut at the frame).",
    "shots.png": "Test accuracy against training images a class; bands run from the lowest to the highest seed.",
}


def render(
    out: Path, comparison: Comparison, summary: Mapping[str, Any], tables: Sequence[Table], pictures: Sequence[str]
) -> str:
    """The page as text."""
    parts = [f"<h1>{html.escape(comparison.title)}</h1>", _lead(comparison, summary)]
    parts += [_table(table) for table in tables[: len(summary["blocks"])]]
    parts += ["<h2>Curves</h2>"] * bool(pictures) + [_picture(out / name) for name in pictures]
    parts += [_table(table) for table in tables[len(summary["blocks"]) :]]
    parts += [_table(_ledger(summary))] * bool(summary["results"])
    parts += [_settings(comparison), _versions(summary), _again(out)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(comparison.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _lead(comparison: Comparison, summary: Mapping[str, Any]) -> str:
    def many(number: int, word: str) -> str:
        return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("x") else "s")

    words = (
        f"{many(len(comparison.methods), 'method')}, {many(len(comparison.tasks), 'task')}, "
        f"{many(len(comparison.boxes), 'box')}, {many(len(comparison.seeds), 'seed')}; "
        f"a budget of {comparison.budget:g} evaluations a run. "
        f"{summary['finished']} of {summary['trials']} runs finished"
    )
    took = f", in {summary['seconds']:.0f} s" if summary["seconds"] else ""
    return (
        f'<p class="lead">{html.escape(words + took)}. One evaluation is one candidate prompt on the whole few-shot '
        "training set; what is kept is chosen on validation, and the test split is read once.</p>"
    )


def _table(table: Table) -> str:
    def side(column: int) -> str:
        return ' class="text"' if column < table.left else ""

    def shown(text: str) -> str:
        return re.sub(r"(?=\?|&amp;|_)", "<wbr>", html.escape(text))  # long URIs may break before an option

    head = "".join(f"<th{side(j)}>{shown(name)}</th>" for j, name in enumerate(table.columns))
    rows = []
    for i, row in enumerate(table.rows):
        cells = []
        for j, cell in enumerate(row):
            kind = ' class="best"' if (i, j) in table.best else ' class="words"' if j and len(cell) > 60 else side(j)
            cells.append(f"<td{kind}>{shown(cell)}</td>")
        rows.append("<tr>" + "".join(cells) + "</tr>")
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{html.escape(table.title)}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + f"</tbody></table></div>{note}"
    )


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = CAPTIONS.get(path.name, "")
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _ledger(summary: Mapping[str, Any]) -> Table:
    names = ("evaluations", "pairs", "test_pairs", "sequences", "image_encodes", "retries", "cost", "seconds")
    heads = ("evaluations", "pairs", "test pairs", "sequences", "image encodes", "retries", "money", "seconds")
    results = summary["results"]
    places = places_of(results)
    return Table(
        title="Ledger",
        left=1 + len(places),
        columns=("method", *places, *heads),
        rows=tuple(
            (e["method"], *(str(e[place]) for place in places), *(count(e[name]) for name in names)) for e in results
        ),
        note="Means of a run. Pairs are what a per-image API bills; sequences and image encodes are passes through the "
        "two towers, what the hardware pays. The final test read is apart from the budget.",
    )


def _settings(comparison: Comparison) -> str:
    text = yaml.safe_dump({k: v for k, v in comparison.as_dict().items() if v not in ({}, [], "")}, sort_keys=False)
    return f"<h2>Settings</h2>\n<pre>{html.escape(text)}</pre>"


def _versions(summary: Mapping[str, Any]) -> str:
    told = {"keyhole": ", ".join(summary["versions"]) or "-", "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}"}  # fmt: skip
    for package in ("numpy", "torch", "open_clip_torch", "ray", "nevergrad", "scikit-learn"):
        try:
            told[package] = version(package)
        except PackageNotFoundError:
            continue
    made = "\n".join(f"{name.ljust(16)}  {value}" for name, value in told.items())
    ran = "\n".join(json.dumps({k: v for k, v in each.items() if k != "canary"}) for each in summary["fingerprints"])
    ran = "\n".join(dict.fromkeys(ran.splitlines()))
    return (
        f'<h2>Versions</h2>\n<pre>{html.escape(made)}</pre>\n<p class="note">Runs were made on:</p>\n'
        f"<pre>{html.escape(ran or '-')}</pre>"
    )


def _again(out: Path) -> str:
    return (
        "<h2>How to remake it</h2>\n<pre>keyhole compare compare.yaml --out again   # the settings above, as a file\n"
        f"keyhole report {html.escape(out.name)}   # this page, from the folder it lies in</pre>\n"
        '<p class="note">The same settings give the same numbers on one CPU type, device kind and torch build, but for '
        "seconds. Each run's own folder, with its recipe, history and artifact, is in trials/.</p>\n"
        f"<footer>Keyhole report, Python {sys.version_info.major}.{sys.version_info.minor}</footer>"
    )
