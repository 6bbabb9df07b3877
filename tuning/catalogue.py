"""What there is to choose from: the tables of `keyhole list`.

Knows nothing of how any of it works.
"""

from __future__ import annotations

from engine import boxes, heads, prompts, search
from tuning import queryless, tasks


def methods() -> list[dict[str, str]]:
    """Name, what it needs of a box, what it is."""
    searched = [
        {"name": row["name"], "needs": _needs(row["gives"], row["accepts"]), "what": row["about"]}
        for row in search.describe()
    ]
    return [
        *searched,
        {"name": "zero-shot", "needs": "anything", "what": "The template itself."},
        *(
            {"name": f"head:{name}", "needs": "features", "what": "A head on returned features."}
            for name in heads.HEADS
        ),
        *(
            {"name": f"ceiling:{name}", "needs": "a local model", "what": "White-box reference, for reports only."}
            for name in queryless.CEILINGS
        ),
    ]


def _needs(gives: list[str], accepts: list[str]) -> str:
    return " or ".join(gives) + "".join(f", accepts {kind}" for kind in accepts)


def prompt_kinds() -> list[dict[str, str]]:
    """Name, what it is."""
    return [{"name": name, "what": target} for name, target in prompts.PROMPTS.items()]


def task_uris() -> list[dict[str, str]]:
    """URI or its form."""
    return [{"name": name} for name in tasks.task_names()]


def box_uris() -> list[dict[str, str]]:
    """URI forms."""
    return [{"name": f"{scheme}:", "what": target} for scheme, target in boxes.SCHEMES.items()]
