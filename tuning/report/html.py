"""report.html: one file that can be sent to a colleague. No script, no link to anything outside; prints well.

What it looks like is in page.html.j2. Knows nothing of how numbers were made.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tuning.compare.command import command_of, uses_files_of
from tuning.compare.comparison import Comparison
from tuning.compare.provenance import now
from tuning.compare.trial import UNBEGUN, UNFINISHED
from tuning.report.tables import listed
from tuning.report.terminal_table import Table, count

TEMPLATE = "page.html.j2"
CAPTIONS = {
    "curves.png": "An evaluation is one prompt on the whole training set, a pair one prompt with one image. Lines are "
    "means over seeds, bands run from the lowest to the highest seed, the dotted line is the template without any "
    "search. Bottom: where the runs ended on the test split, which is read once; ticks are seeds, lines the 95 % "
    "intervals of the mean from three seeds on (cut at the frame).",
    "shots.png": "Test accuracy against training images a class; bands run from the lowest to the highest seed, the "
    "dotted line is the template without any search.",
}


def render(
    out: Path, comparison: Comparison, summary: Mapping[str, Any], tables: Sequence[Table], pictures: Sequence[str]
) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["breakable"] = _breakable
    out = out.resolve()
    ledger = [_ledger(summary)] if summary["results"] else []
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        summary=summary,
        name=out.name,
        tables=[*tables, *ledger],
        pictures=[_picture(out / picture) for picture in pictures],
        missing=_missing(summary["failed"]),
        commands=_commands(out, comparison, summary["ran"]),
        settings=_sizes(comparison),
        yaml=yaml.safe_dump({k: v for k, v in comparison.as_dict().items() if v not in ({}, [], "")}, sort_keys=False),
        versions=_versions(summary),
        fingerprints=_fingerprints(summary),
        made=now(),
    )


def _commands(out: Path, comparison: Comparison, ran: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What to type in the folder that holds `out`: to run it again, to make the page again, to go on with it."""
    parallel = ran[-1]["parallel"] if ran else None
    home = ran[-1]["folder"] if ran else "."
    # Relative paths of tasks are those of the folder in which it was run.
    elsewhere = home != "." and uses_files_of(comparison, out.parent / home)
    place = os.path.relpath(out, (out.parent / home).resolve()) if elsewhere else out.name

    def there(command: str) -> str:
        return f"(cd {shlex.quote(home)} && {command})" if elsewhere else command

    go_on = ["keyhole", "compare", "--resume", place, *(["--parallel", str(parallel)] if parallel is not None else [])]
    return {
        "again": there(command_of(comparison, f"{place}-again", parallel)),
        "report": shlex.join(["keyhole", "report", out.name]),
        "resume": there(shlex.join(go_on)),
    }


def _missing(failed: Sequence[Mapping[str, Any]]) -> str:
    """How many runs failed, were cut short, were never begun."""
    kinds = Counter(entry["error"] if entry["error"] in (UNFINISHED, UNBEGUN) else "failed" for entry in failed)
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items())


def _sizes(comparison: Comparison) -> str:
    def many(number: int, word: str) -> str:
        return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("x") else "s")

    sizes = ((comparison.methods, "method"), (comparison.tasks, "task"), (comparison.boxes, "box"),
             (comparison.seeds, "seed"))  # fmt: skip
    return ", ".join(many(len(values), word) for values, word in sizes)


def _breakable(text: str) -> Any:
    """Escaped; long URIs may break before an option."""
    import markupsafe

    return markupsafe.Markup(re.sub(r"(?=\?|&amp;|_)", "<wbr>", markupsafe.escape(text)))


def _picture(path: Path) -> dict[str, str]:
    return {"data": base64.b64encode(path.read_bytes()).decode(), "caption": CAPTIONS[path.name]}


def _ledger(summary: Mapping[str, Any]) -> Table:
    names = ("evaluations", "pairs", "test_pairs", "sequences", "image_encodes", "retries", "cost", "seconds")
    return listed(
        "Ledger",
        summary["results"],
        {"money" if name == "cost" else name.replace("_", " "): name for name in names},
        count,
        "Means of a run. Pairs are what a per-image API bills; sequences and image encodes are passes through the two "
        "towers, what the hardware pays. The final test read is apart from the budget.",
    )


def _versions(summary: Mapping[str, Any]) -> list[str]:
    """Of what made the numbers: the runs' own versions, and the packages of the sessions that started them."""
    told = {"keyhole": summary["versions"]}
    for session in summary["ran"]:
        for name, found in {"python": session["python"], **session["packages"]}.items():
            told.setdefault(name, [])
            told[name] += [found] * (found not in told[name])
    return [f"{name.ljust(16)}  {', '.join(values) or '-'}" for name, values in told.items()]


def _fingerprints(summary: Mapping[str, Any]) -> list[str]:
    lines = (json.dumps({k: v for k, v in each.items() if k != "canary"}) for each in summary["fingerprints"])
    return list(dict.fromkeys(lines))
