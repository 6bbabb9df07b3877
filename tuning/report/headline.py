"""What a comparison found: a sentence of its numbers, and how sure they are.

Differences are called significant only by the paired tests of the report; what needs no search is named wherever the
best search is not shown to be better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine import search

SIGNIFICANT = 0.05
"""Largest p value, after Holm's correction, that is called significant."""

Entry = Mapping[str, Any]


def headline(
    block: Mapping[str, Any], *, seeds: int, searches: Sequence[Mapping[str, Any]], place: str = ""
) -> dict[str, str]:
    """`found`, the sentence of one box and number of shots, and `sure`, which may be empty.

    Args:
        block: of `summary.json`: methods with their means, and the tests between them.
        seeds: how many each method was to have.
        searches: searches for settings, with what they cost.
        place: which box and shots, where there are several.
    """
    tasks = block["tasks"]
    where = (f"On {tasks[0]}" if len(tasks) == 1 else f"On average over {len(tasks)} tasks") + place
    known = sorted((m for m in block["methods"] if m["mean"] is not None), key=lambda m: -m["mean"])
    known = [m for m in known if not m["name"].startswith("ceiling:")]  # a reference by gradients is no rival
    if not known:
        return {"found": f"{where}, no method has finished a seed yet.", "sure": ""}
    searched = [m for m in known if search.searches(m["name"])]
    best = (searched or known)[0]
    words = f"{where} over {_seeds(best['seeds'], seeds)}, {best['method']} reaches {_value(best)}"
    words += f" after {best['evaluations']:,.0f} evaluations"
    spent = sum(s["evaluations"] for s in searches if s["method"] == best["method"])
    words += f" (and {spent:,.0f} before, in which its settings were chosen)" if spent else ""
    second = searched[1] if len(searched) > 1 else None
    words += f"; the next best search, {second['method']}, {_other(best, second)}" if second else ""
    free = [m for m in known if not search.searches(m["name"]) and m is not best]
    shot = next((m for m in free if m["name"] == "zero-shot"), None)
    if shot or (best["name"] != "zero-shot" and best["zero_shot_accuracy"] is not None):
        words += f"; zero-shot {_other(best, shot) if shot else _percent(best['zero_shot_accuracy'])}"
    sure = [*(_lead(best, other, block["tests"]) for other in (second, shot) if other)]
    rival = next((m for m in free if m is not shot), None)
    if not searched:
        sure.append("No prompt was searched.")
    elif rival and not _better(best, rival, block["tests"]):
        sure.append(f"{rival['method']}, which searches no prompt, reaches {_value(rival)}.")
        sure.append(_lead(best, rival, block["tests"]))
    if min(m["seeds"] for m in known) == 1:
        sure.append("One seed shows no spread: differences may be chance.")
    return {"found": words + ".", "sure": " ".join(filter(None, sure))}


def _other(best: Entry, other: Entry) -> str:
    few = f" ({_seeds(other['seeds'], other['seeds'])})" if other["seeds"] != best["seeds"] else ""
    return _percent(other["mean"]) + few


def _better(best: Entry, other: Entry, tests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what is known speaks for `best`: a significant test, else ranges that do not overlap, else the values."""
    if best["mean"] <= other["mean"]:
        return False
    test = _test(best, other, tests)
    return test["p_holm"] < SIGNIFICANT if test else best["lowest"] > other["highest"]


def _lead(best: Entry, other: Entry, tests: Sequence[Mapping[str, Any]]) -> str:
    """How sure it is which of the two is ahead; nothing where that is one seed's word."""
    if best["mean"] == other["mean"]:
        return f"{best['method']} and {other['method']} are level."
    ahead, behind = (best, other) if best["mean"] > other["mean"] else (other, best)
    words = f"The lead of {ahead['method']} over {behind['method']}"
    test = _test(best, other, tests)
    if test:
        p = f"p = {test['p_holm']:.2g}" if test["p_holm"] >= 0.001 else "p < 0.001"
        return f"{words} is {'' if test['p_holm'] < SIGNIFICANT else 'not '}significant ({p})."
    if min(best["seeds"], other["seeds"]) == 1:
        return ""
    if ahead["lowest"] > behind["highest"]:
        return f"{words} holds in every seed, of which there are too few for a test."
    return f"{words} is within the range of the seeds."


def _test(first: Entry, second: Entry, tests: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    pair = {first["method"], second["method"]}
    return next((test for test in tests if {test["better"], test["worse"]} == pair), None)


def _value(entry: Entry) -> str:
    """The mean with its interval, from three seeds on; the range of two; one value alone."""
    if entry["high"] is not None:
        return f"{_percent(entry['mean'])} (95 % interval {100 * entry['low']:.1f} to {100 * entry['high']:.1f})"
    if entry["seeds"] > 1:
        return f"{_percent(entry['mean'])} (from {100 * entry['lowest']:.1f} to {100 * entry['highest']:.1f})"
    return _percent(entry["mean"])


def _seeds(number: int, planned: int) -> str:
    of = f"{number} of {planned}" if number < planned else f"{number}"
    return f"{of} seed" + "s" * (max(number, planned) > 1)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
