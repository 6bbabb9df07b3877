"""Means with intervals, ranks and paired tests.

Knows nothing of where the numbers come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

LEVEL = 0.95
FEWEST = 3
"""Least independent values for an interval or a test: for two, Student's t interval is 13 times their spread."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, and the range of the values."""

    n: int
    mean: float
    standard_deviation: float | None
    """None for one value."""
    low: float | None
    high: float | None
    """None for fewer than `FEWEST` values."""
    lowest: float
    highest: float


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of a few independent values; at least one.

    >>> found = interval([0.80, 0.82, 0.84])
    >>> round(found.mean, 2), round(found.low, 4), round(found.high, 4)
    (0.82, 0.7703, 0.8697)
    """
    from scipy.stats import sem, t

    n, mean, ends = len(values), float(np.mean(values)), (float(min(values)), float(max(values)))
    sd = float(np.std(values, ddof=1)) if n > 1 else None
    if sd is None or n < FEWEST:
        return Interval(n, mean, sd, None, None, *ends)
    # scipy's interval of equal values is NaN.
    low, high = t.interval(LEVEL, n - 1, loc=mean, scale=sem(values)) if sd > 0 else (mean, mean)
    return Interval(n, mean, sd, float(low), float(high), *ends)


def mean_ranks(cells: Mapping[str, Mapping[Hashable, float]]) -> dict[str, float]:
    """Mean rank of each method (1 is best) over the cells that all methods have; ties share their ranks.

    >>> mean_ranks({"a": {1: 0.9, 2: 0.5}, "b": {1: 0.8, 2: 0.5}})
    {'a': 1.25, 'b': 1.75}
    """
    from scipy.stats import rankdata

    shared = set.intersection(*(set(values) for values in cells.values())) if cells else set()
    if not shared:
        return {}
    table = np.array([[cells[name][cell] for cell in shared] for name in cells])
    ranks = rankdata(-table, axis=0).mean(axis=1)
    return {name: round(float(rank), 3) for name, rank in zip(cells, ranks, strict=True)}


def paired_tests(
    cells: Mapping[str, Mapping[Any, float]], draw: Callable[[Any], Hashable] = lambda cell: cell
) -> list[dict[str, Any]]:
    """Paired t tests of every pair of methods over the cells (task, seed) that both have, with Holm's correction.

    Two-sided. Cells of one task are not independent where methods differ by task, so a test over few tasks speaks of
    these tasks alone.

    Args:
        cells: Values by method and cell.
        draw: The independent draw of a cell: its seed. Pairs that share fewer than `FEWEST` draws are not tested.

    Returns:
        Dicts of `better`, `worse`, `difference` (its mean), `low`, `high` (95 %), `cells`, `p`, `p_holm`.
    """
    from scipy.stats import ttest_rel

    found = []
    for better, worse in combinations(cells, 2):
        shared = sorted(set(cells[better]) & set(cells[worse]), key=repr)
        if len({draw(cell) for cell in shared}) < FEWEST:
            continue
        more, less = (np.array([cells[name][cell] for cell in shared]) for name in (better, worse))
        if (more - less).mean() < 0:
            better, worse, more, less = worse, better, less, more
        told = interval((more - less).tolist())
        p = float(told.mean == 0)  # all differences are equal
        if told.standard_deviation:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # differences equal up to rounding
                p = float(ttest_rel(more, less).pvalue)
        found.append(
            {
                "better": better,
                "worse": worse,
                "difference": told.mean,
                "low": told.low,
                "high": told.high,
                "cells": told.n,
                "p": p,
            }
        )
    for row, corrected in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = corrected
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p values (Holm 1979, Scandinavian Journal of Statistics 6:65), in their order.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order, corrected = np.argsort(p_values, kind="stable"), np.empty(len(p_values))
    steps = np.arange(len(p_values), 0, -1) * np.array(p_values)[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def average(entries: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """The mean of what the entries hold under this name; None where none holds it."""
    values = [entry[name] for entry in entries if entry.get(name) is not None]
    return sum(values) / len(values) if values else None
