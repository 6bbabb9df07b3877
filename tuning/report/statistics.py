"""Means with intervals, ranks and paired tests.

Knows nothing of where the numbers come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

LEVEL = 0.95
FEWEST = 3
"""Independent values from which on an interval or a test is given: of two, Student's t makes 13 times their spread."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, and the range of the values."""

    n: int
    mean: float
    sd: float | None
    """None of one value."""
    low: float | None
    high: float | None
    """None of fewer than `FEWEST` values."""
    lowest: float
    highest: float

    @property
    def half(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of a few independent values.

    >>> found = interval([0.80, 0.82, 0.84])
    >>> round(found.mean, 2), round(found.low, 4), round(found.high, 4)
    (0.82, 0.7703, 0.8697)
    """
    from scipy.stats import sem, t

    n, mean, ends = len(values), float(np.mean(values)), (float(min(values)), float(max(values)))
    sd = float(np.std(values, ddof=1)) if n > 1 else None
    if sd is None or n < FEWEST:
        return Interval(n, mean, sd, None, None, *ends)
    # Of equal values scipy's interval is not a number.
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
    """Every pair of methods: paired t test over the cells (task, seed) both have, with Holm's correction.

    Pairs that share fewer than `FEWEST` independent draws (`draw` of a cell: its seed) are not tested. Holm 1979,
    Scandinavian Journal of Statistics 6:65; p values are two-sided. Cells of one task are not independent where methods
    differ by task, so a test over few tasks speaks of these tasks alone.

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
        p = float(told.mean == 0)  # where all gaps are equal
        if told.sd:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # gaps that are equal up to rounding
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
    """Holm's step-down correction.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected
