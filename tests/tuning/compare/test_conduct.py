"""Comparisons: what runs, what survives, what is never repeated."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engine.artifact import Artifact
from engine.boxes import open_box
from engine.boxes.toy import toy_task
from engine.errors import ArtifactError, BoxError, RecipeError, TaskError
from engine.protocols import Prompts
from tuning.compare.comparison import arms_of, flags_of, make_comparison, trials_of
from tuning.compare.conduct import compare
from tuning.compare.experiment_trackers import Board
from tuning.compare.sweep_spaces import drawn, split_spaces
from tuning.compare.trial import Trial, carry_out, done
from tuning.compare.tune_runner import Cluster
from tuning.data.load_task import load_task
from tuning.evaluate import evaluate
from tuning.lease import Lease
from tuning.report.summary import rows_of, settings_of

IN_TURN = Cluster(parallel=0)
TIMES = {"seconds", "workers", "retries", "duplicates", "bytes", "fingerprint"}
TOY = {"tasks": ["toy:"], "boxes": ["toy:"], "seeds": [1, 2], "budget": 20}


def results(out) -> list[dict[str, str]]:
    """results.csv without times."""
    with open(out / "results.csv", encoding="utf-8") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def run(out, cluster=IN_TURN, **settings):
    return compare(make_comparison({**TOY, **settings}), out, cluster=cluster)


# ---------------------------------------------------------------------------------------------------------------------
# Settings


def test_uris_with_commas_stay_whole():
    told = flags_of({"boxes": "open_clip:ViT-B-16,openai,toy:?gives=scores,labels", "methods": "a,nevergrad:CMA"})
    assert told["boxes"] == ("open_clip:ViT-B-16,openai", "toy:?gives=scores,labels")
    assert told["methods"] == ("a", "nevergrad:CMA")


def test_every_combination_once_and_all_names_differ():
    comparison = make_comparison(
        {**TOY, "methods": ["zero-shot", "momentum", {"name": "momentum", "k": 3}, "nevergrad:CMA"], "shots": [1, 2]},
        ["method.radius={grid: [0.1, 0.2]}", "prompt.tokens=4"],
    )
    trials = trials_of(comparison)
    assert [arm.label for arm in arms_of(comparison)] == [
        "zero-shot", "momentum radius=0.1", "momentum radius=0.2", "momentum k=3 radius=0.1",
        "momentum k=3 radius=0.2", "nevergrad:CMA",
    ]  # fmt: skip
    assert len(trials) == len({trial.name for trial in trials}) == 6 * 2 * 2
    assert all(trial.recipe["prompt"]["tokens"] == 4 for trial in trials)


def test_the_page_of_the_documentation_is_a_comparison():
    import yaml

    page = Path(__file__).parents[3] / "docs" / "compare.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    comparison = make_comparison(yaml.safe_load(block))
    assert len(trials_of(comparison)) == 2 * 3 * 5
    assert [arm.label for arm in arms_of(comparison) if arm.searched] == ["spsa-gc"]


@pytest.mark.parametrize(
    ("settings", "words", "hint"),
    [
        ({"methods": ["momentun"]}, [], "momentum"),
        ({"methods": ["momentum"]}, ["method.radios={grid: [1]}"], "radius"),
        ({"methods": ["momentum"]}, ["promt.tokens=4"], "prompt"),
        ({"methods": ["momentum"]}, ["method.radius={loguniform: [1, 0]}"], "low, high"),
        ({"methods": [{"name": "zip", "radius": {"choice": [1, 2]}}]}, [], "has no option 'radius'"),
        ({"methods": ["momentum"]}, ["workers=2"], "--parallel"),
        ({"methods": ["momentum"], "seeds": [1, 1]}, [], "twice"),
        ({"methods": ["momentum"], "searcher": "optima"}, [], "optuna"),
        ({"methods": ["momentum"], "tasks": ["coop:{data}/pets"]}, [], "--data"),
        ({"methods": []}, [], "empty"),
        ({"seeds": ["one"]}, [], "list of int"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tmp_path, settings, words, hint):
    with pytest.raises(RecipeError, match=hint):
        compare(make_comparison({**TOY, **settings}, words), tmp_path / "c", cluster=IN_TURN)
    assert not (tmp_path / "c").exists()


def test_draws_are_different_and_spread():
    _, spaces = split_spaces({"method": {"radius": {"loguniform": ["1e-3", 1]}, "k": {"choice": [1, 2, 4, 8]}}})
    configs = drawn(spaces, 8, seed=3)
    assert len(configs) == 8 and configs == drawn(spaces, 8, seed=3) != drawn(spaces, 8, seed=4)
    assert sorted(c["method.k"] for c in configs) == [1, 1, 2, 2, 4, 4, 8, 8]
    assert sorted(int(8 * (3 + np.log10(c["method.radius"])) / 3) for c in configs) == list(range(8))


# ---------------------------------------------------------------------------------------------------------------------
# In turn


def test_a_failed_trial_is_a_row_and_sinks_nothing(tmp_path):
    summary = run(tmp_path / "c", methods=["zero-shot", "head:linear", "momentum"], boxes=["toy:", "toy:?gives=labels"])
    assert (summary["trials"], summary["finished"]) == (12, 8)
    failed = [row for row in results(tmp_path / "c") if row["error"]]
    assert {(row["label"], row["box"]) for row in failed} == {
        ("head:linear", "toy:?gives=labels"), ("momentum", "toy:?gives=labels"),
    }  # fmt: skip
    assert all("needs a box that gives" in row["error"] for row in failed)
    assert {block["gives"] for block in summary["blocks"]} == {"features+labels+scores+topk", "labels"}


def test_an_interrupted_comparison_reports_and_resumes_to_the_same_results(tmp_path):
    methods = ["zero-shot", "momentum", "spsa-gc"]
    whole = run(tmp_path / "whole", methods=methods)
    stop = threading.Event()

    class Impatient(Board):
        def heard(self, folder, metrics):
            if "momentum" in folder.name and metrics["evaluations"] > 8:
                stop.set()

    comparison = make_comparison({**TOY, "methods": methods})
    half = compare(comparison, tmp_path / "half", cluster=IN_TURN, board=Impatient(lambda line: None), stop=stop)
    assert (half["trials"], half["finished"]) == (6, 1) and (tmp_path / "half" / "report.html").exists()
    began = tmp_path / "half" / "trials" / "toy_toy_momentum_16-shot_s1"
    assert not done(began) and (began / "checkpoint" / "state.safetensors").exists()
    finished = tmp_path / "half" / "trials" / "toy_toy_zero-shot_16-shot_s1" / "result.json"
    before = finished.stat().st_mtime_ns
    assert compare(None, tmp_path / "half", resume=True, cluster=IN_TURN)["finished"] == 6
    assert results(tmp_path / "half") == results(tmp_path / "whole") and finished.stat().st_mtime_ns == before
    assert whole["finished"] == 6


def test_a_folder_that_another_comparison_writes_is_refused(tmp_path):
    with Lease(tmp_path / "c"), pytest.raises(ArtifactError, match="is being written by process"):
        run(tmp_path / "c", methods=["zero-shot"])
    assert not list((tmp_path / "c").iterdir())
    run(tmp_path / "c", methods=["zero-shot"])
    assert not list((tmp_path / "c").rglob("lease.json")) and not list((tmp_path / "c").rglob("checkpoint"))
    with Lease(tmp_path / "c"), pytest.raises(ArtifactError, match="is being written by process"):
        compare(None, tmp_path / "c", resume=True, cluster=IN_TURN)


@pytest.mark.parametrize("name", ["results.csv", "curves.png", "trial.json", "state.safetensors"])
def test_a_full_disk_is_one_sentence_and_can_be_gone_on_from(tmp_path, monkeypatch, name):
    settings = {"methods": ["momentum"], "seeds": [1]}
    run(tmp_path / "whole", **settings)
    real = open

    def full(file, mode="r", *rest, **more):
        if name in str(file) and mode[0] == "w":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, mode, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", full)
        if name == "state.safetensors":  # a run that fails is a row of the report
            assert run(tmp_path / "c", **settings)["finished"] == 0
        else:
            with pytest.raises(ArtifactError, match="No space left .*keyhole compare --resume"):
                run(tmp_path / "c", **settings)
    assert not list((tmp_path / "c").rglob("*.tmp"))
    assert compare(None, tmp_path / "c", resume=True, cluster=IN_TURN)["finished"] == 1
    assert results(tmp_path / "c") == results(tmp_path / "whole")


def test_an_existing_folder_and_an_empty_one(tmp_path):
    run(tmp_path / "c", methods=["zero-shot"])
    with pytest.raises(ArtifactError, match="--resume"):
        run(tmp_path / "c", methods=["zero-shot"])
    with pytest.raises(ArtifactError, match="nothing to resume"):
        compare(None, tmp_path / "nothing", resume=True, cluster=IN_TURN)


@pytest.mark.parametrize("test_images", [None, 90])
def test_shared_boxes_change_no_number(tmp_path, test_images):
    """Trials that share an opened box and the test split say what a run by itself says."""
    from tuning.recipe import make_recipe
    from tuning.run import Tuning

    run(tmp_path / "c", methods=["zero-shot", "head:linear", "momentum", "zip"], test_images=test_images)
    for row in rows_of(tmp_path / "c", settings_of(tmp_path / "c")):
        folder = tmp_path / "c" / "trials" / row["trial"]
        alone = Tuning(make_recipe(Trial.read(folder).recipe), tmp_path / "alone" / row["trial"])
        for _ in alone:
            pass
        ours = json.loads((folder / "result.json").read_text())
        assert {k: v for k, v in ours.items() if k not in TIMES} == {
            k: v for k, v in alone.result.items() if k not in TIMES
        }
        assert ours["fingerprint"]["canary"] == alone.result["fingerprint"]["canary"]
        told = evaluate(Artifact.load(folder), test_images=test_images)
        assert told["accuracy"] == ours["accuracy"] and ours["test_images"] == (test_images or 500)


# ---------------------------------------------------------------------------------------------------------------------
# Protocols


def test_base_to_new_and_shift(tmp_path):
    settings = {"methods": ["zero-shot", "head:linear", "momentum"], "seeds": [1], "budget": 40}
    summary = run(tmp_path / "c", base_to_new=True, shift=["toy:?seed=9"], **settings)
    rows = {row["label"]: row for row in results(tmp_path / "c")}
    for label in ("zero-shot", "momentum"):
        base, new, mean = (float(rows[label][k]) for k in ("base_accuracy", "new_accuracy", "harmonic_mean"))
        assert mean == pytest.approx(2 * base * new / (base + new)) and 0 < float(rows[label]["shift:toy:?seed=9"]) < 1
    assert rows["head:linear"]["new_accuracy"] == "" and float(rows["head:linear"]["base_accuracy"]) > 0
    folder = tmp_path / "c" / "trials" / "toy_toy_momentum_16-shot_s1"
    context = Artifact.load(folder).arrays["context"]
    task = load_task("toy:", half="new")
    box = open_box("toy:", classes=task.classes, template=task.template)
    answer = box.answer(Prompts(count=1, context=context[None]), box.stage(task.test.source), np.arange(len(task.test)))
    assert float(rows["momentum"]["new_accuracy"]) == (answer.predictions()[0] == task.test.labels).mean()
    assert summary["results"][0]["harmonic_mean"] is not None


def test_degraded_tasks():
    clean, bad = load_task("toy:", seed=2), load_task("toy:?imbalance=8&label_noise=0.25", seed=2)
    counts = np.bincount(bad.train.labels, minlength=5)
    assert len(bad.train) < len(clean.train) and counts.max() <= 16 + len(bad.train) // 4
    tail = np.bincount(load_task("toy:?imbalance=8", seed=2).train.labels)
    assert (tail.max(), tail.min()) == (16, 2) and len(set(tail.tolist())) == 5
    noisy = load_task("toy:?label_noise=0.25", seed=2)
    assert (noisy.train.labels != clean.train.labels).sum() == 20
    assert (bad.val.labels == clean.val.labels).all() and len(bad.test) == len(clean.test)
    with pytest.raises(RecipeError, match="fraction"):
        load_task("toy:?label_noise=20")


def test_degraded_boxes():
    task = toy_task()

    def answers(uri, rows):
        box = open_box(uri, classes=task.classes, template=task.template)
        contexts = box.spec.text.context[None] + np.array([0.0, 0.1], np.float32)[:, None, None]
        return box, box.answer(Prompts(count=2, context=contexts), box.stage(task.test.source), np.asarray(rows))

    _, plain = answers("toy:?gives=scores", range(8))
    box, noisy = answers("toy:?noise=0.5", range(8))
    _, later = answers("toy:?noise=0.5", [5, 2])
    assert "features" not in box.spec.gives and box.spec.identity["imperfect"] == {"noise": 0.5}
    assert (later.scores == noisy.scores[:, [5, 2]]).all(), "the same question gets the same answer"
    gap = noisy.scores - plain.scores
    gap -= gap.mean(-1, keepdims=True)  # log-probabilities differ from logits by a constant a row
    assert 0.3 < gap.std() < 0.6
    assert abs(np.corrcoef(gap[0].ravel(), gap[1].ravel())[0, 1]) < 0.6, "each candidate has noise of its own"
    _, rounded = answers("toy:?round=1", range(8))
    assert set(np.round(np.exp(rounded.scores.astype(float)), 3).ravel()) <= {
        0.05,
        *np.round(np.arange(0.1, 1.1, 0.1), 1),
    }
    box, top = answers("toy:?topk=2", range(8))
    assert top.topk[0].shape == (2, 8, 2) and box.spec.gives == {"labels", "topk"}
    box, blurred = answers("toy:?jpeg=10", range(8))
    assert "features" in box.spec.gives and (blurred.image != answers("toy:", range(8))[1].image).any()
    for uri, hint in (("toy:?noise=0.1&gives=features", "cannot give features"), ("toy:?jpeg=0", "from 1 to 95")):
        with pytest.raises(RecipeError, match=hint):
            answers(uri, [0])


def test_a_search_chooses_on_validation_and_pays_apart(tmp_path):
    out = tmp_path / "c"
    methods = ["zero-shot", {"name": "momentum", "radius": {"loguniform": [1e-4, 1.0]}}]
    summary = run(out, methods=methods, samples=4, budget=30)
    (search,) = summary["searches"]
    assert search["runs"] == 4 and search["evaluations"] > 4 * 25 and search["seed"] == 0
    best = min(search["tried"], key=lambda row: row["val_loss"])
    assert search["chosen"] == best["config"] and best["val_loss"] < max(row["val_loss"] for row in search["tried"])
    for row in rows_of(out, settings_of(out)):
        if row["label"] == "momentum":
            recipe = Trial.read(out / "trials" / row["trial"]).recipe
            assert recipe["method"]["radius"] == search["chosen"]["method.radius"] and row["evaluations"] <= 30


# ---------------------------------------------------------------------------------------------------------------------
# The field's 11 data sets, on a miniature copy of their layout


@pytest.fixture
def coop_folder(tmp_path):
    """Two data sets as CoOp lays them out, of images that the toy box tells apart."""
    from PIL import Image

    source = toy_task(train=6, val=4, test=10)
    for name, stem in (("oxford_pets", "OxfordPets"), ("eurosat", "EuroSAT")):
        listed = {}
        for split in ("train", "val", "test"):
            part = getattr(source, split)
            listed[split] = []
            for row, label in enumerate(part.labels.tolist()):
                file = f"{split}_{row}.png"
                (tmp_path / name / "images").mkdir(parents=True, exist_ok=True)
                Image.fromarray(part.source.read([row])[0]).save(tmp_path / name / "images" / file)
                listed[split].append([file, label, source.classes[label]])
        (tmp_path / name / f"split_zhou_{stem}.json").write_text(json.dumps(listed))
    return tmp_path


def coop_settings(**changes):
    from tuning.recipe import load_recipe

    settings = load_recipe(Path(__file__).parents[3] / "recipes" / "coop11.yaml")
    assert len(settings["tasks"]) == len(settings["gate"]["zero_shot"]) == 11
    kept = [task for task in settings["tasks"] if "oxford_pets" in task or "eurosat" in task]
    return {**settings, "tasks": kept, "boxes": ["toy:"], "shots": [4], "seeds": [1], "budget": 20,
            "methods": ["zero-shot", "momentum"], **changes}  # fmt: skip


def test_coop11_gate_is_closed_for_another_model(tmp_path, coop_folder):
    settings = coop_settings(data=str(coop_folder))
    with pytest.raises(TaskError, match="gate is closed.*oxford_pets.*published is 0.891"):
        compare(make_comparison(settings), tmp_path / "c", cluster=IN_TURN)
    assert not list((tmp_path / "c" / "trials").iterdir())


def test_coop11_on_its_layout(tmp_path, coop_folder):
    settings = coop_settings(data=str(coop_folder))
    settings["gate"] = {"tolerance": 1.0, "zero_shot": settings["gate"]["zero_shot"]}
    summary = compare(make_comparison(settings), tmp_path / "c", cluster=IN_TURN)
    assert (summary["trials"], summary["finished"]) == (4, 4)
    page = (tmp_path / "c" / "report.html").read_text()
    assert "not run here" in page and "SharpZO" in page and "oxford_pets" in page


# ---------------------------------------------------------------------------------------------------------------------
# On Ray Tune


@pytest.mark.ray
def test_tune_gives_what_the_plain_loop_gives(tmp_path, ray_local):
    methods = ["zero-shot", "momentum", "faulty_methods:Dies", "faulty_methods:Raises"]
    ours = run(tmp_path / "tune", Cluster(parallel=2), methods=methods)
    rows = {(row["label"], row["seed"]): row for row in results(tmp_path / "tune")}
    assert (ours["trials"], ours["finished"]) == (8, 4)
    assert "process died" in rows["faulty_methods:Dies", "1"]["error"]
    assert "ZeroDivisionError: on purpose" in rows["faulty_methods:Raises", "2"]["error"]
    run(tmp_path / "loop", methods=methods[:2])
    assert results(tmp_path / "loop") == [row for row in results(tmp_path / "tune") if not row["error"]]


@pytest.mark.ray
@pytest.mark.parametrize("extra", [{"asha": True}, {"searcher": "nevergrad"}, {"searcher": "optuna"}])
def test_searches_on_tune(tmp_path, ray_local, extra):
    if extra.get("searcher") == "optuna":
        pytest.importorskip("optuna")
    methods = [{"name": "momentum", "radius": {"loguniform": [1e-4, 1.0]}}]
    summary = run(tmp_path / "c", Cluster(parallel=2), methods=methods, samples=5, budget=45, seeds=[1], **extra)
    (search,) = summary["searches"]
    assert search["runs"] == 5 and summary["finished"] == 1
    losses = {row["config"]["method.radius"]: row["val_loss"] for row in search["tried"] if row["finished"]}
    assert losses[search["chosen"]["method.radius"]] == min(losses.values())
    if "asha" in extra:
        assert any(not row["finished"] and row["evaluations"] < 45 for row in search["tried"])


@pytest.mark.ray
def test_a_trial_that_fits_nowhere(tmp_path, ray_local):
    from engine.evaluators.ray_start import check_room

    with pytest.raises(BoxError, match="no node"):
        check_room(1000, 0, own=True)


@pytest.mark.ray
def test_tensorboard_writes_where_tune_does(tmp_path, ray_local):
    comparison = make_comparison({**TOY, "methods": ["momentum"], "seeds": [1]})
    compare(comparison, tmp_path / "c", cluster=Cluster(parallel=1), trackers=["tensorboard"])
    assert list((tmp_path / "c" / "tune").rglob("events.out.tfevents.*"))


@pytest.mark.ray
def test_mlflow_with_its_file_store(tmp_path, ray_local):
    pytest.importorskip("mlflow")
    comparison = make_comparison({**TOY, "methods": ["momentum"], "seeds": [1]})
    compare(comparison, tmp_path / "c", cluster=Cluster(parallel=1), trackers=["mlflow"])
    assert list((tmp_path / "c" / "mlflow").rglob("accuracy"))


@pytest.mark.ray
def test_wandb_offline(tmp_path, ray_local, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    comparison = make_comparison({**TOY, "methods": ["momentum"], "seeds": [1]})
    compare(comparison, tmp_path / "c", cluster=Cluster(parallel=1), trackers=["wandb"])
    (kept,) = (tmp_path / "c" / "wandb").glob("offline-run-*/*.wandb")
    assert b"zero_shot_accuracy" in kept.read_bytes()


def test_a_tracker_that_is_not_logged_in(monkeypatch):
    from tuning.compare import experiment_trackers

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(experiment_trackers, "installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(api=SimpleNamespace(api_key=None)))
    with pytest.raises(RecipeError, match="wandb login"):
        experiment_trackers.check(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = experiment_trackers.check(["wandb"])
    told = tracker.settings(Path("runs", "c"))
    assert told == {"project": "keyhole", "group": "c", "dir": str(Path("runs", "c")), "mode": "offline"}


def test_what_is_missing_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.compare.experiment_trackers.installed", lambda name: False)
    comparison = make_comparison({**TOY, "searcher": "optuna"})
    for trackers, hint in (["mlflw"], "mlflow"), (["mlflow"], r"\.\[mlflow\]"), ([], r"\.\[optuna\]"):
        with pytest.raises(RecipeError, match=hint):
            compare(comparison, tmp_path / "c", cluster=Cluster(parallel=1), trackers=trackers)
    assert not (tmp_path / "c").exists()


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    """`wandb/` in the working directory, which a W&B run leaves there."""
    from tuning.compare.experiment_trackers import installed

    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("some_tracker") and installed("pytest")


@pytest.mark.slow
def test_sigkill_and_resume_give_the_same_results(tmp_path):
    """The driver and its local Ray die; finished trials stay, begun ones go on, nothing is left running."""
    command = [sys.executable, "-m", "keyhole", "compare", "--tasks", "toy:", "--boxes", "toy:", "--seeds", "1,2",
               "--methods", "zero-shot,momentum,spsa-gc", "--budget", "1500", "checkpoint_s=0.2"]  # fmt: skip
    for name in ("whole", "killed"):
        where = ["--parallel", "0"] if name == "whole" else []
        process = subprocess.Popen([*command, *where, "--out", str(tmp_path / name)], stderr=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        if name == "whole":
            assert process.wait(timeout=300) == 0
            continue
        deadline = time.monotonic() + 200
        begun = "trials/*momentum*/checkpoint/state.safetensors"
        while not list((tmp_path / name).glob(begun)) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list((tmp_path / "killed").glob("trials/*/result.json")))
    assert finished < 6
    again = subprocess.run([sys.executable, "-m", "keyhole", "compare", "--resume", str(tmp_path / "killed")],
                           check=False, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reports_what_is_there(tmp_path, number):
    out = tmp_path / "c"
    process = subprocess.Popen(
        [sys.executable, "-m", "keyhole", "compare", "--tasks", "toy:", "--boxes", "toy:", "--seeds", "1,2,3",
         "--methods", "zero-shot,momentum", "--budget", "20000", "--parallel", "1", "--out", str(out)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(out.glob("trials/*zero-shot*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130 and "keyhole compare --resume" in told
    summary = json.loads((out / "summary.json").read_text())
    assert 0 < summary["finished"] < summary["trials"] and (out / "report.html").exists()


def test_a_crash_in_the_middle_of_reads_makes_them_again(tmp_path):
    run(tmp_path / "c", methods=["zero-shot"], seeds=[1])
    (folder,) = (tmp_path / "c" / "trials").iterdir()
    (folder / "reads.json").unlink()
    assert not done(folder)
    assert list(carry_out(folder)) == [] and done(folder)
