"""`keyhole bench search` from beginning to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.comparisons import rows_of, settings_of

TOY = ["--tasks", "toy:", "--box", "toy:", "--shots", "4", "--parallel", "0"]


def test_a_run_leaves_tables_pictures_and_json(tmp_path, command):
    words = [*TOY, "--methods", "momentum,craft", "--budgets", "20,60", "--seeds", "1,2", "--out", str(tmp_path)]
    words += ["--step-sizes", "--step-budget", "20", "--step-seeds", "7", "--json"]
    code, out, _ = command("bench", "search", *words)
    told = json.loads(out)
    assert code == 0 and told == json.loads((tmp_path / "search.json").read_text())
    assert list(told["methods"]) == ["momentum", "craft, with its score-adapter"]
    assert told["step_sizes"]["momentum"]["runs"] == 5
    chosen = told["step_sizes"]["momentum"]["chosen"]
    assert told["methods"]["momentum"]["options"] == {"radius": chosen}
    rows = rows_of(tmp_path / "60", settings_of(tmp_path / "60"))
    accuracies = [row["accuracy"] for row in rows if row["method"] == "momentum"]
    assert len(accuracies) == 2
    assert told["methods"]["momentum"]["budgets"]["60"]["accuracy"][0] == pytest.approx(np.mean(accuracies))
    assert json.loads((tmp_path / "step_sizes.json").read_text()) == told["step_sizes"]
    assert "`craft, with its score-adapter`" in (tmp_path / "search.md").read_text()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("search.png", "headline.png"))
    code, again, err = command("bench", "search", *words)
    assert code == 0 and json.loads(again) == told and "momentum" not in err, "nothing but what was refused runs again"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--methods", "momentun"], "momentum"),
        (["--seeds", "one"], "numbers"),
        (["--step-sizes", "--seeds", "1,101"], "--step-seeds"),
        (["--step-sizes", "--ablation"], "--ablation"),
    ],
)
def test_user_mistakes_end_with_2_before_anything_runs(tmp_path, command, words, hint):
    code, _, err = command("bench", "search", *TOY, "--out", str(tmp_path), *words)
    assert code == 2 and hint in err and not list(tmp_path.iterdir())
