"""Tables say what rows say."""

from __future__ import annotations

import pytest

from bench.search import tables
from bench.search.arms import COOP, TEMPLATE


def test_evaluations_to_a_loss_are_medians_over_seeds():
    known = {"t": {"images": 10, TEMPLATE: {"loss": 1.0, "accuracy": 0.1}, COOP: {"loss": 0.0625, "accuracy": 0.9}}}
    curves = {1: (0.5, 0.125), 2: (0.5, 0.25), 3: (0.25, 0.25)}
    rows = [
        {"task": "t", "label": "m", "method": "m", "options": {}, "seed": seed, "budget": budget,
         "evaluations": budget, "seconds": 2.0, "pairs": budget * 10, "best_loss": loss, "accuracy": 0.5}
        for seed, losses in curves.items() for budget, loss in zip((100.0, 400.0), losses, strict=True)
    ]  # fmt: skip
    told = tables.summarise(rows, known)
    # Half of the way from 1 to 1/16 in the logarithm is 1/4, three quarters 1/8. Seeds reach 1/4 at 252, 400 and 100.
    assert told["targets"]["t"][:2] == pytest.approx([0.25, 0.125])
    assert told["methods"]["m"]["reached"]["t"][0] == pytest.approx(100 * 4 ** (2 / 3))
    assert told["methods"]["m"]["reached"]["t"][1] is None
    assert told["methods"]["m"]["evaluations_per_second"] == 125
    text = tables.tables({"budgets": [100.0, 400.0], **told})
    assert "| `m` | 252 / > 400 / > 400 |" in text and "0.417 ± 0.083 / 0.500 ± 0.000" in text
    assert "`zero-shot` 1.000 / 0.100, `ceiling:coop` 0.062 / 0.900" in text


def test_a_reference_that_a_task_lacks_has_no_mean():
    known = {"a": {"images": 1, COOP: {"loss": 1.0, "accuracy": 0.5}}, "b": {"images": 1}}
    assert tables.mean_reference(known, COOP, "accuracy") is None
    assert tables.mean_reference({"a": known["a"]}, COOP, "accuracy") == 0.5
