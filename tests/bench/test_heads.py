import json
from types import SimpleNamespace

import pytest

from bench import heads
from engine.heads import HEADS
from tuning.white_box import coop

QUICK = {name: HEADS[name] for name in ("gda", "tip", "auto", "score-linear")}


def test_trials_are_resumed_and_stand_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heads.heads, "HEADS", QUICK)
    monkeypatch.setattr(coop, "coop", lambda *_args, **_options: SimpleNamespace(accuracy=0.82))
    out = tmp_path / "trials.jsonl"
    command = ["--tasks", "mini:digits", "--seeds", "1", "--budget", "12", "--out", str(out), "k=4"]
    assert heads.main(command) == 0
    first = capsys.readouterr().out
    row = json.loads(out.read_text())
    for kind in ("template", "prompt"):
        told = row[kind]
        assert set(told) == {"none", *QUICK}
        assert all(0 <= value["accuracy"] <= 1 for value in told.values())
        assert told["auto"]["val_loss"] <= min(told[name]["val_loss"] for name in ("none", "gda", "tip"))
    assert row["template"]["none"]["accuracy"] == pytest.approx(0.668, abs=1e-3)
    assert "k=4" in row["method"] and "| 82.0 |" in first.splitlines()[-1]
    monkeypatch.setattr(heads, "trial", lambda *_args: pytest.fail("made again"))
    assert heads.main(command) == 0 and capsys.readouterr().out == first


def test_a_setting_that_nobody_has_is_told(tmp_path, capsys):
    assert heads.main(["couplin=0", "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "coupling" in capsys.readouterr().err
