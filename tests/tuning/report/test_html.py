"""What a comparison's page claims, and that what it tells people to type works."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.artifact import Artifact
from engine.boxes.toy import toy_task
from engine.errors import BoxError, RecipeError
from keyhole.cli import main
from tuning.compare import provenance
from tuning.compare.command import command_of, words_of
from tuning.compare.comparison import flags_of, make_comparison
from tuning.compare.conduct import compare
from tuning.compare.experiment_trackers import Board
from tuning.compare.tune_runner import Cluster
from tuning.report import plots
from tuning.report.headline import headline
from tuning.report.statistics import interval, paired_tests
from tuning.report.summary import remake, rows_of, settings_of
from tuning.report.tables import tables_of

IN_TURN = Cluster(parallel=0)
TOY = {"tasks": ["toy:"], "boxes": ["toy:"], "seeds": [1, 2, 3], "shots": [4], "budget": 20,
       "methods": ["zero-shot", "momentum"]}  # fmt: skip
TIMES = {"seconds", "bytes", "fingerprint"}


def run(out, board=None, stop=None, **settings):
    return compare(make_comparison({**TOY, **settings}), out, cluster=IN_TURN, board=board, stop=stop)


def page_of(out) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def commands_of(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r'<pre class="commands">(.*?)</pre>', page, re.S)]


def results(out) -> list[dict[str, str]]:
    with open(out / "results.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------------------------------
# The headline


def block_of(**accuracies: list[float]) -> dict:
    """A block of one task, as summary.json has it, from accuracies by seed; `_` in names is `:`."""
    cells = {name.replace("_", ":"): dict(enumerate(values)) for name, values in accuracies.items()}
    cells = {name.replace("zero", "zero-shot"): values for name, values in cells.items()}
    methods = []
    for name, values in cells.items():
        told = interval(list(values.values()))
        methods.append({"method": name, "name": name, "mean": told.mean, "low": told.low, "high": told.high,
                        "lowest": told.lowest, "highest": told.highest, "seeds": told.n, "evaluations": 300.0,
                        "zero_shot_accuracy": 0.67})  # fmt: skip
    return {"tasks": ["mini:digits"], "methods": methods, "tests": paired_tests(cells)}


def told(seeds: int = 3, **accuracies: list[float]) -> tuple[str, str]:
    found = headline(block_of(**accuracies), seeds=seeds, searches=[])
    return found["found"], found["sure"]


def test_a_clear_lead_over_three_seeds():
    found, sure = told(sketch=[0.870, 0.861, 0.881], cbbt=[0.790, 0.782, 0.799], zero=[0.67, 0.67, 0.67])
    assert found.startswith("On mini:digits over 3 seeds, sketch reaches 87.1 % (95 % interval 84.6 to 89.6) after")
    assert found.endswith("the next best search, cbbt, 79.0 %; zero-shot 67.0 %.")
    assert re.search(r"lead of sketch over cbbt is significant \(p", sure) and "not significant" not in sure


def test_overlapping_seeds_are_not_called_a_difference():
    _, sure = told(sketch=[0.87, 0.80, 0.84], cbbt=[0.80, 0.84, 0.82], zero=[0.84, 0.79, 0.80])
    assert "The lead of sketch over cbbt is not significant (p = " in sure
    assert "The lead of sketch over zero-shot is not significant (p = " in sure


def test_what_needs_no_search_is_named_where_it_is_as_good():
    _, sure = told(sketch=[0.87, 0.86, 0.88], zero=[0.6, 0.61, 0.6], head_linear=[0.92, 0.93, 0.90])
    assert "head:linear, which searches no prompt, reaches 91.7 %" in sure and "lead of head:linear over sketch" in sure
    _, sure = told(sketch=[0.87, 0.86, 0.88], zero=[0.6, 0.61, 0.6], head_linear=[0.72, 0.70, 0.71])
    assert "head:linear" not in sure
    _, sure = told(sketch=[0.60, 0.58, 0.64], zero=[0.67, 0.67, 0.67])
    assert "lead of zero-shot over sketch" in sure, "a search below the template is not hidden"
    found, sure = told(head_linear=[0.9, 0.9, 0.9])
    assert "head:linear reaches" in found and "No prompt was searched." in sure


def test_two_seeds_have_a_range_and_one_has_none():
    found, sure = told(2, sketch=[0.87, 0.85], cbbt=[0.80, 0.86])
    assert "over 2 seeds, sketch reaches 86.0 % (from 85.0 to 87.0)" in found and "interval" not in found
    assert sure == "The lead of sketch over cbbt is within the range of the seeds."
    _, sure = told(2, sketch=[0.87, 0.85], cbbt=[0.80, 0.81])
    assert sure.endswith("holds in every seed, of which there are too few for a test.")
    found, sure = told(1, sketch=[0.87], cbbt=[0.80])
    assert "over 1 seed, sketch reaches 87.0 % after" in found and sure.startswith("One seed shows no spread")
    found, sure = told(3, sketch=[0.87, 0.88], cbbt=[0.80])
    assert "over 2 of 3 seeds" in found and "cbbt, 80.0 % (1 seed)" in found and "lead" not in sure


def test_the_price_of_chosen_settings_is_in_the_headline():
    search = {"method": "sketch", "evaluations": 1600.0}
    found = headline(block_of(sketch=[0.8, 0.9]), seeds=2, searches=[search])["found"]
    assert "after 300 evaluations (and 1,600 before, in which its settings were chosen)" in found


@pytest.mark.parametrize("seeds", [[1], [1, 2], [1, 2, 3]])
def test_intervals_and_tests_from_three_seeds_on(tmp_path, seeds):
    summary = run(tmp_path / "c", seeds=seeds)
    (entry,) = (entry for entry in summary["results"] if entry["method"] == "momentum")
    (block,) = summary["blocks"]
    cell = tables_of(settings_of(tmp_path / "c"), summary)[0].rows[1][1]
    values = [float(row["accuracy"]) for row in results(tmp_path / "c") if row["label"] == "momentum"]
    assert (entry["lowest"], entry["highest"]) == (min(values), max(values)) and len(values) == len(seeds)
    if len(seeds) < 3:
        assert entry["low"] is None and not block["tests"] and "Paired tests" not in page_of(tmp_path / "c")
        assert "±" not in cell and ("to" in cell) == (len(seeds) == 2)
    else:
        assert entry["low"] <= entry["mean"] <= entry["high"] and len(block["tests"]) == 1 and "±" in cell


# ---------------------------------------------------------------------------------------------------------------------
# What it is of


def test_which_prompt_each_method_had(tmp_path):
    methods = ["zero-shot", "head:linear", {"name": "momentum", "k": 3}, "sketch"]
    summary = run(tmp_path / "c", tasks=["mini:digits"], boxes=["mini:resnet"], seeds=[1], budget=12, methods=methods)
    assert summary["finished"] == 4, summary["failed"]
    (table,) = (t for t in tables_of(settings_of(tmp_path / "c"), summary) if t.title == "What each method searched")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    for row in rows_of(tmp_path / "c", settings_of(tmp_path / "c")):
        arrays = Artifact.load(tmp_path / "c" / "trials" / row["trial"]).arrays
        shown = rows[row["label"]]
        if row["label"] in ("zero-shot", "head:linear"):
            assert (shown["prompt"], shown["dimensions"], row["dim"]) == ("the template", "-", None)
            continue
        assert row["dim"] == int(shown["dimensions"]) == len(arrays["theta"])
        assert row["context_tokens"] == int(shown["tokens"]) == arrays["context"].shape[-2]
        assert (shown["prompt"], shown["subspace"]) == ("text", "full")
    assert rows["head:linear"]["head"] == "linear"
    assert (rows["momentum"]["contexts"], rows["sketch"]["contexts"]) == ("shared", "one a class (10)")
    assert (rows["momentum"]["settings"], rows["sketch"]["settings"]) == ("k=3", "the method's own")
    page = page_of(tmp_path / "c")
    assert "one a class (10)" in page and "What each method searched" in page


def test_settings_chosen_on_validation_are_told_as_such(tmp_path):
    methods = [{"name": "momentum", "radius": {"loguniform": [0.01, 1]}}]
    summary = run(tmp_path / "c", methods=methods, samples=2, seeds=[1])
    (table,) = (t for t in tables_of(settings_of(tmp_path / "c"), summary) if t.title == "What each method searched")
    (row,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    (search,) = summary["searches"]
    assert row["settings"] == search["in_words"] and row["chosen"].startswith("by the lowest validation loss of 2 runs")
    assert "before, in which its settings were chosen" in summary["headline"][0]["found"]


def test_when_where_and_of_which_commit_it_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: "0123456789abcdef" * 2 + "01234567 with changes")
    monkeypatch.setattr(provenance, "cpu_model", lambda: "Difference Engine")
    monkeypatch.setattr(provenance, "now", lambda: "1843-10-01 09:00 UTC")
    run(tmp_path / "c", seeds=[1])
    monkeypatch.undo()
    summary = remake(tmp_path / "c")
    for text in (page_of(tmp_path / "c"), json.dumps(summary["ran"])):
        assert "1843-10-01 09:00 UTC" in text and "Difference Engine" in text and "0123456789ab" in text
    page = page_of(tmp_path / "c")
    assert "commit 0123456789ab with changes;" in page and f"Page made {provenance.now()[:4]}" in page
    compare(None, tmp_path / "c", resume=True, cluster=IN_TURN)
    assert "Ran 1843" in page_of(tmp_path / "c") and "Resumed 2" in page_of(tmp_path / "c")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_this_code(tmp_path, monkeypatch):
    """Not that of a checkout in which it merely lies, as a virtual environment does."""

    def git(*words):
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    for name in ("code.py", "installed.py"):
        (tmp_path / name).write_text("x = 1\n")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD").strip()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "code.py"))
    assert provenance.commit() == head
    (tmp_path / "code.py").write_text("x = 2\n")
    assert provenance.commit() == f"{head} with changes"
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "installed.py"))
    assert provenance.commit() is None


def test_the_template_is_a_line_in_every_panel_of_accuracies(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: drawn.append(figure))
    summary = run(tmp_path / "c", tasks=["toy:", "toy:?label_noise=0.3"], shots=[1, 4], seeds=[1])
    zero = {(e["task"], e["shots"]): e["zero_shot_accuracy"] for e in summary["results"]}
    lines: dict[str, list[float]] = {"x": [], "y": []}
    for figure in drawn:
        for axes in figure.axes:
            for line in axes.lines:
                if line.get_label() == plots.ZERO_SHOT["label"]:
                    assert line.get_linestyle() != "-" and axes.get_title() is not None
                    data = {"x": np.unique(line.get_xdata()), "y": np.unique(line.get_ydata())}
                    ((axis, value),) = [(k, v) for k, v in data.items() if tuple(v) != (0, 1)]
                    lines[axis] += value.tolist()
    assert len(lines["x"]) == 4, "the bottom panels"
    assert lines["x"] == pytest.approx([100 * accuracy for accuracy in zero.values()])
    assert len(lines["y"]) == 4 + 2, "validation, and test against shots"


# ---------------------------------------------------------------------------------------------------------------------
# How to remake it


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tasks": ["toy:", "folder:/a b/it's"], "title": 'Toys & "tools"; $HOME', "budget": 12.5, "asha": True},
        {"boxes": ["open_clip:ViT-B-16,/w x.safetensors?gives=scores,labels", "toy:"], "base_to_new": True,
         "shift": ["toy:?label_noise=0.3"], "seeds": [5]},
        {"methods": ["zero-shot", {"name": "momentum", "k": {"grid": [2, 4]}, "radius": 1e-05}], "search_seed": 7},
        {"recipe": {"prompt": {"tokens": 8, "subspace": {"grid": ["full", "random:16"]}}, "method": {"k": 3},
                    "head": "linear"}, "samples": 3, "searcher": "nevergrad"},
        {"gate": {"zero_shot": {"toy:": 0.5}, "tolerance": 1.0}, "data": "/d", "tasks": ["coop:{data}/x"],
         "published": [{"name": "CoOp, 2022", "accuracy": {"toy": 0.9}, "source": "a: b"}]},
        {"tasks": ["folder:a,b:c"]},
    ],
)  # fmt: skip
def test_the_command_says_every_setting(settings):
    """The words are read back as the command line reads them."""
    comparison = make_comparison({**TOY, **settings})
    words, given, rest = iter(words_of(comparison)), {}, []
    for word in words:
        if not word.startswith("--"):
            rest.append(word)
        elif word in ("--asha", "--base-to-new"):
            given[word[2:].replace("-", "_")] = True
        else:
            text = next(words)
            name = word[2:]
            given[name] = float(text) if name == "budget" else int(text) if name == "samples" else text
    assert make_comparison({}, rest, flags_of(given)) == comparison
    assert command_of(comparison, "c").endswith(" --out c")


def test_what_the_page_tells_to_type_works_in_one_folder(tmp_path, monkeypatch):
    """With a task beside where it was run, named by a relative path, and words that a shell would take apart."""
    task = toy_task(train=6, val=4, test=10)
    for split in ("train", "val", "test"):
        part = getattr(task, split)
        for row, label in enumerate(part.labels.tolist()):
            folder = tmp_path / "data & more" / split / task.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.source.read([row])[0]).save(folder / f"{row}.png")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def shell(command: str, where: Path) -> None:
        done = subprocess.run(
            command, shell=True, cwd=where, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    monkeypatch.chdir(tmp_path)
    told = {"tasks": ["folder:data & more"], "seeds": [1], "shots": [2], "title": "It's <b>a</b> $HOME"}
    for out in (tmp_path / "runs" / "first one", tmp_path / "beside"):
        run(out, **told)
        again, report = commands_of(page_of(out))
        # Beside runs/first one the task's relative path leads nowhere.
        assert again.startswith("(cd .. && " if out.parent.name == "runs" else "keyhole compare")
        shell(again, out.parent)
        assert results(out.with_name(f"{out.name}-again")) == results(out)
    (out / "report.html").unlink()
    shell(report, out.parent)
    assert "It&#39;s &lt;b&gt;a&lt;/b&gt; $HOME" in page_of(out)


# ---------------------------------------------------------------------------------------------------------------------
# What it looks like


def test_names_run_nothing(tmp_path):
    evil = "<script>alert(1)</script>"
    run(tmp_path / "c", tasks=["toy:", f"folder:/nowhere/{evil}"], title=evil, seeds=[1],
        published=[{"name": evil, "source": f'"{evil}', "accuracy": {"toy": 0.5}}])  # fmt: skip
    page = page_of(tmp_path / "c")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4


def test_it_fits_a_phone_and_a_dark_room(tmp_path):
    run(tmp_path / "c", seeds=[1, 2, 3])
    page = page_of(tmp_path / "c")
    assert page.count("<table") == len(re.findall(r'<div class="wide"[^>]*><table', page)) > 3
    assert re.search(r"div\.wide \{[^}]*overflow-x: auto", page) and "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page


# ---------------------------------------------------------------------------------------------------------------------
# What is missing


def test_an_interrupted_search_for_settings_leaves_every_run_missing(tmp_path):
    stop = threading.Event()

    class Impatient(Board):
        def begun(self, folder):
            stop.set()

    methods = [{"name": "momentum", "radius": {"loguniform": [0.01, 1]}}]
    summary = run(tmp_path / "c", board=Impatient(lambda line: None), stop=stop, methods=methods)
    assert (summary["trials"], summary["finished"]) == (3, 0)
    assert {entry["error"] for entry in summary["failed"]} == {"not begun"}
    page = page_of(tmp_path / "c")
    assert "No run has finished yet." in page and "0 of 3 runs finished" in page and "3 not begun" in page


def test_a_killed_comparison_says_what_is_missing_and_how_to_go_on(tmp_path):
    out = tmp_path / "c"
    comparison = make_comparison({**TOY, "methods": ["zero-shot", "momentum", "head:tip"], "budget": 200000})
    words = ["compare", *words_of(comparison), "--parallel", "0", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "keyhole", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/*momentum*/recipe.yaml")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = remake(out)
    assert (summary["trials"], summary["finished"]) == (9, 1)
    errors = [entry["error"] for entry in summary["failed"]]
    assert errors.count("not finished") == 1 and errors.count("not begun") == 7
    page = page_of(out)
    assert "not ended: killed, or still running" in page
    assert re.search(r"1 of 9 runs finished;\s+1 not finished, 7 not begun", page)
    assert "keyhole compare --resume c --parallel 0" in page
    assert "over 1 of 3 seeds" in summary["headline"][0]["found"]


# ---------------------------------------------------------------------------------------------------------------------
# What was refused


@pytest.fixture
def nobody(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have connected this process
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "head", "127.0.0.1:99999", "http://a:1"])
def test_a_bad_address_leaves_nothing_behind(tmp_path, nobody, capsys, address):
    out = tmp_path / "not" / "there" / "c"
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--tasks", "toy:", "--boxes", "toy:", "--methods", "zero-shot", "--address",
              address.format(nobody), "--out", str(out)])  # fmt: skip
    assert ended.value.code in (RecipeError.exit_code, BoxError.exit_code)
    assert "error: " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_mistake_before_the_first_trial_leaves_a_folder(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="gate.tolerence"):
        run(tmp_path / "c", gate={"tolerence": 0.1})
    monkeypatch.setattr("tuning.compare.tune_runner.Connected.__enter__", lambda self: setattr(self, "own", True))
    monkeypatch.setattr("ray.nodes", lambda: [])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2})
    comparison = make_comparison({**TOY, "pool.cpus": 1000})
    with pytest.raises(BoxError, match="no node"), monkeypatch.context() as patch:
        patch.setattr("ray.shutdown", lambda: None)
        compare(comparison, tmp_path / "c", cluster=Cluster(parallel=1))
    assert not (tmp_path / "c").exists()
