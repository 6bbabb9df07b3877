"""What there is to choose from: the tables of `keyhole list`.

Knows nothing of how any of it works.
"""

from __future__ import annotations

from typing import Any

from engine import search
from engine.boxes import SCHEMES
from engine.prompts import PROMPTS
from tuning import queryless
from tuning.tasks import task_names


def methods() -> list[dict[str, Any]]:
    """Name, what it needs of a box, what it is, its options with their defaults."""
    searched = [
        {
            "name": row["name"],
            "needs": _needs(row["gives"], row["accepts"]),
            "what": row["about"],
            "options": row["options"],
        }
        for row in search.describe()
    ]
    return [*searched, *({"name": name, **_about(name), "options": {}} for name in queryless.names())]


def _about(name: str) -> dict[str, str]:
    if name.startswith("head:score-"):
        return {"needs": "scores or features", "what": "A head on returned scores; searches no prompt."}
    if name == queryless.ENSEMBLE:
        return {"needs": "features, accepts words", "what": "The mean of many templates' class features."}
    if name.startswith("head:"):
        return {"needs": "features", "what": "A head on returned features; searches no prompt."}
    if name.startswith("ceiling:"):
        return {"needs": "a local model", "what": "White-box reference, for reports only."}
    return {"needs": "anything", "what": "The template itself."}


def _needs(gives: list[str], accepts: list[str]) -> str:
    return " or ".join(gives) + "".join(f", accepts {kind}" for kind in accepts)


def prompts() -> list[dict[str, str]]:
    """Name, what it is."""
    return [{"name": name, "what": target} for name, target in PROMPTS.items()]


def tasks() -> list[dict[str, str]]:
    """URI or its form."""
    return [{"name": name} for name in task_names()]


def boxes() -> list[dict[str, str]]:
    """URI forms."""
    return [{"name": f"{scheme}:", "what": target} for scheme, target in SCHEMES.items()]
