"""The report: statistics against what is known, and pages that stand by themselves."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from engine.errors import ArtifactError
from keyhole.cli import main
from tuning.compare.comparison import make_comparison
from tuning.compare.conduct import compare
from tuning.compare.experiment_trackers import Board
from tuning.compare.tune_runner import Cluster
from tuning.report.statistics import holm, interval, mean_ranks, paired_tests
from tuning.report.summary import COLUMNS, remake, settings_of
from tuning.report.tables import tables_of
from tuning.report.terminal_table import Table, count, percent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "c"
    settings = {"tasks": ["toy:", "toy:?label_noise=0.3"], "boxes": ["toy:", "toy:?noise=1"], "seeds": [1, 2, 3],
                "shots": [1, 4], "methods": ["zero-shot", "head:linear", "momentum"], "budget": 20,
                "title": "Toys & <tools>"}  # fmt: skip
    compare(make_comparison(settings), out, cluster=Cluster(parallel=0))
    return out


def test_interval_is_students():
    scipy = pytest.importorskip("scipy.stats")
    values = [0.71, 0.75, 0.72, 0.79]
    low, high = scipy.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.sem(values))
    told = interval(values)
    assert (told.low, told.high) == (pytest.approx(low), pytest.approx(high)) and told.n == 4
    assert interval([0.5]).high is None


def test_paired_tests_agree_with_scipy():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    cells = {name: {(t, s): float(rng.normal(mean, 1)) for t in "ab" for s in range(5)}
             for name, mean in (("low", 0), ("high", 2), ("middle", 1))}  # fmt: skip
    rows = paired_tests(cells)
    assert len(rows) == 3
    for row in rows:
        pairs = [[cells[row[side]][cell] for cell in cells["low"]] for side in ("better", "worse")]
        assert row["p"] == pytest.approx(scipy.ttest_rel(*pairs).pvalue) and row["difference"] >= 0
        assert row["p_holm"] >= row["p"] and row["cells"] == 10
    assert holm([0.2, 0.001, 0.5]) == [0.4, 0.003, 0.5]
    assert mean_ranks({"a": {1: 1.0, 2: 3.0}, "b": {1: 2.0}}) == {"a": 2.0, "b": 1.0}


def test_no_difference_is_no_evidence():
    (row,) = paired_tests({"a": {1: 0.5, 2: 0.5, 3: 0.5}, "b": {1: 0.5, 2: 0.5, 3: 0.5}})
    assert row["p"] == 1.0


def test_results_have_the_columns_of_the_contract(finished):
    with open(finished / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 2 * 3 and tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    one = json.loads((finished / "trials" / rows[5]["trial"] / "result.json").read_text())
    assert list(one) == list(COLUMNS) and float(rows[5]["accuracy"]) == one["accuracy"]


def test_summary_is_of_the_rows(finished):
    summary = json.loads((finished / "summary.json").read_text())
    with open(finished / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for entry in summary["results"]:
        mine = [float(row["accuracy"]) for row in rows
                if (row["task"], row["box"], row["label"], int(row["shots"])) ==
                (entry["task"], entry["box"], entry["method"], entry["shots"]) and not row["error"]]  # fmt: skip
        assert entry["seeds"] == len(mine) == 3 and entry["mean"] == pytest.approx(np.mean(mine))
        assert entry["standard_deviation"] == pytest.approx(np.std(mine, ddof=1))
    assert {entry["method"] for entry in summary["results"] if "noise=1" in entry["box"]} == {"zero-shot", "momentum"}
    assert summary["finished"] == 72 - 12 and len(summary["blocks"]) == 4


def test_the_page_stands_by_itself(finished):
    page = (finished / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2, "curves and shots"
    assert not re.search(r"<script|<link|src=\"(?!data:)|href=|url\(", page)
    assert "Toys &amp; &lt;tools&gt;" in page
    for heading in ("Curves", "Paired tests", "By shots", "degraded", "Ledger", "Settings", "Versions", "remake",
                    "Not finished"):  # fmt: skip
        assert heading in page
    assert (finished / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_report_is_remade_from_what_lies_there(finished, capsys):
    before = {name: (finished / name).read_bytes() for name in ("results.csv", "summary.json")}
    for name in before:
        (finished / name).unlink()
    (finished / "report.html").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(finished)])
    out, err = capsys.readouterr()
    assert not ended.value.code and "report.html" in err
    assert {name: (finished / name).read_bytes() for name in before} == before
    for word in ("zero-shot", "head:linear", "momentum", "±", "rank", "evaluations", "pairs", "toy:?noise=1"):
        assert word in out


def test_a_trial_without_a_result_is_told(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    victim = next((copy / "trials").glob("*momentum*/result.json"))
    victim.unlink()
    summary = remake(copy)
    assert {"trial": victim.parent.name, "error": "not finished"} in summary["failed"]


def test_no_comparison_there(tmp_path):
    with pytest.raises(ArtifactError, match="keyhole compare"):
        remake(tmp_path)


def test_every_row_of_a_table_says_what_it_is_of(finished):
    """Boxes that refuse a method are left out of its means, and reasons are told once."""
    summary = json.loads((finished / "summary.json").read_text())
    tables = {table.title: table for table in tables_of(settings_of(finished), summary)}
    shots, failed = tables["By shots"], tables["Not finished"]
    (why,) = {entry["error"] for entry in summary["failed"]}
    assert failed.rows == ((f"{summary['failed'][0]['trial']} and 11 more", why),)
    kept = [e for e in summary["results"] if e["box"] == "toy:" and e["method"] == "momentum"]
    assert shots.rows[2][0] == "momentum" and shots.rows[2][1:] == tuple(
        percent(np.mean([e["mean"] for e in kept if e["shots"] == number])) for number in (1, 4)
    )
    of_task = next(table for table in tables_of(settings_of(finished), summary) if table.title == "toy:, degraded")
    assert of_task.columns == ("method", "as it is", "label_noise=0.3") and "with toy:;" in of_task.note
    ledger = re.search(r"<h2>Ledger.*?<tbody>(.*?)</tbody>", (finished / "report.html").read_text(), re.S).group(1)
    rows = [tuple(re.findall(r"<td.*?>(.*?)</td>", row))[:4] for row in ledger.splitlines()]
    assert len(set(rows)) == len(rows) == len(summary["results"])


def test_text_columns_line_up():
    table = Table(title="t", columns=("a", "b"), rows=(("long name", "1"), ("x", "1234")))
    lines = table.text().splitlines()[4:6]
    assert [len(line) for line in lines] == [len("long name") + 6] * 2
    assert [count(value) for value in (None, 0.5, 12, 9_999, 12_345, 2_500_000)] == [
        "-", "0.5", "12", "9999", "12.3k", "2.5M",
    ]  # fmt: skip


def test_board_on_a_terminal_and_elsewhere(finished):
    folder = next((finished / "trials").iterdir())
    plain, live = [], []
    for told, board in ((plain, Board(plain.append)), (live, Board(live.append, live=True))):
        board.expect(3, 1)
        board.begun(folder)
        board.heard(folder, {"evaluations": 5.0, "best_loss": 1.25})
        board.ended(folder)
        board.clear()
        assert any(folder.name in line and ("accuracy" in line or "failed" in line) for line in told)
    assert not any("\x1b" in line for line in plain) and any("\x1b" in line for line in live)
    assert plain[0].startswith("1 of 3") and plain[1].startswith("2/3")
