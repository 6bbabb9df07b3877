"""Heads alone, with a prompt and without: one comparison, one table."""

from __future__ import annotations

import json

import pytest

from bench import heads
from engine.heads import HEADS

QUICK = ("gda", "tip", "score-linear")


def test_every_combination_is_a_trial_and_stands_in_the_table(tmp_path, monkeypatch, command):
    monkeypatch.setattr(heads, "HEADS", {name: HEADS[name] for name in QUICK})
    words = ["--tasks", "toy:", "--box", "toy:", "--seeds", "1,2", "--budget", "30", "--parallel", "0", "k=4"]
    code, out, _ = command("bench", "heads", *words, "--out", str(tmp_path / "heads"), "--json")
    rows = json.loads(out)["trials"]
    names = ["zero-shot", *(f"`{name}`, head alone" for name in QUICK), "prompt alone"]
    names += [f"`{name}`, with the prompt" for name in QUICK]
    assert code == 0 and [row["what"] for row in rows] == names * 2, "CoOp needs gradients, which toy: has not"
    accuracy = {what: [row["accuracy"] for row in rows if row["what"] == what] for what in names}
    assert min(accuracy["`gda`, with the prompt"]) > max(accuracy["zero-shot"])
    assert accuracy["`gda`, with the prompt"] != accuracy["`gda`, head alone"] != accuracy["prompt alone"]
    losses = {row["what"]: row["val_loss"] for row in rows}
    assert losses.pop("zero-shot") is None and all(0 < loss < 2 for loss in losses.values())
    assert len(set(losses.values())) == len(losses)
    code, out, _ = command("bench", "heads", *words, "--out", str(tmp_path / "heads"))
    mean = 100 * sum(accuracy["prompt alone"]) / 2
    assert code == 0 and f"| prompt alone | {mean:.1f} | {mean:.1f} |" in out


@pytest.mark.parametrize(("words", "hint"), [("couplin=0", "coupling"), ("--seeds=x", "numbers")])
def test_a_setting_that_nobody_has_is_a_mistake(tmp_path, command, words, hint):
    code, _, err = command("bench", "heads", words, "--out", str(tmp_path / "x"))
    assert code == 2 and hint in err and not (tmp_path / "x").exists()
