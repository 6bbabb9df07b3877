"""What there is to choose from: the tables of `keyhole list`.

Knows nothing of how any of it works.
"""

from __future__ import annotations

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any

from engine import boxes as box_schemes
from engine import prompts as prompt_kinds
from engine import search
from miniature import models
from miniature import tasks as embedded
from tuning.data import load_task
from tuning.recipe import Recipe
from tuning.report.terminal_table import Table

_POOREST_FIRST = ("labels", "topk", "scores", "features")


def list_methods() -> list[dict[str, Any]]:
    """Name, the least that it needs of a box, what it is, its options with their defaults."""
    return [
        {
            "name": row["name"],
            "needs": _needs(row["gives"], row["accepts"]),
            "what": row["about"],
            "options": row["options"],
        }
        for row in search.describe()
    ]


def _needs(gives: list[str], accepts: list[str]) -> str:
    """The poorest answer that will do: a box that gives a richer one can give it, too."""
    return " + ".join([next(kind for kind in _POOREST_FIRST if kind in gives), *accepts])


def list_prompts() -> list[dict[str, str]]:
    """Name, what it is."""
    kinds = prompt_kinds.PROMPTS.items()
    return [{"name": name, "what": prompt_kinds.ABOUT.get(name) or _first_line(target)} for name, target in kinds]


def list_tasks() -> list[dict[str, str]]:
    """URI or its form, what it is."""
    return _with_embedded(load_task.FORMS, embedded.TASKS)


def list_boxes() -> list[dict[str, str]]:
    """URI or its form, what it is."""
    told = {form.partition(":")[0] for form in box_schemes.FORMS}
    others = {f"{scheme}:": _first_line(target) for scheme, target in box_schemes.SCHEMES.items() if scheme not in told}
    return _with_embedded(box_schemes.FORMS | others, models.ABOUT)


def _first_line(target: str) -> str:
    """What `module:name` says of itself."""
    return (resolve_name(target).__doc__ or "").strip().partition("\n")[0].rstrip(".")


def _with_embedded(forms: dict[str, str], names: dict[str, str]) -> list[dict[str, str]]:
    """The forms of URIs, with all names in place of `mini:NAME`."""
    own = [{"name": f"mini:{name}", "what": what} for name, what in names.items()]
    return own + [{"name": form, "what": what} for form, what in forms.items() if form != "mini:NAME"]


LISTS: dict[str, tuple[Callable[[], list[dict[str, Any]]], str, str]] = {
    "methods": (
        list_methods,
        f"--method NAME (default {Recipe.method})",
        "needs: the least that a box must give (features hold more than scores, scores more than the top k,\n"
        "the top k more than labels), and what it must accept besides text contexts or pixels.\n"
        "A method's settings and their defaults: keyhole list methods --json; set one with method.NAME=VALUE.",
    ),
    "prompts": (list_prompts, f"prompt.name=NAME (default {Recipe.prompt.name})", "Further settings: docs/recipe.md."),
    "tasks": (
        list_tasks,
        f"--task URI (default {Recipe.task})",
        "Options follow as ?name=value&name=value, for example 'folder:pets?template=a photo of a {}, a pet.'\n"
        "A ? in a path is written %3F. More: docs/tasks.md.",
    ),
    "boxes": (
        list_boxes,
        f"--box URI (default {Recipe.box})",
        "For example --box open_clip:ViT-B-32,laion2b_s34b_b79k, which is downloaded.\n"
        "What a box gives and accepts, and which words it knows: keyhole doctor --box URI.\n"
        "Options follow as ?name=value: docs/boxes.md.",
    ),
}
"""What can be listed: its rows, how one is chosen, what to know besides."""


def table(what: str) -> Table:
    """A table for a terminal, at most 100 columns wide."""
    rows, title, note = LISTS[what]
    found = [{key: value for key, value in row.items() if key != "options"} for row in rows()]
    columns = tuple(found[0])
    return Table(
        title=title,
        columns=("name", *("what it is for" if name == "what" else name for name in columns[1:])),
        rows=tuple(tuple(row.values()) for row in found),
        left=len(columns),
        note=note,
    )
