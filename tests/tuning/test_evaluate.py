"""Artifacts read elsewhere: on another device, from another folder, as the start of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import boxes
from engine.artifact import META, Artifact
from engine.boxes.toy import ToyBox
from engine.errors import ArtifactError
from keyhole import tune
from keyhole.cli import main
from tuning.compare.comparison import make_comparison
from tuning.compare.conduct import compare
from tuning.compare.trial import READS
from tuning.compare.tune_runner import Cluster
from tuning.evaluate import evaluate


def read_result(folder) -> dict:
    """What `result.json` of a run holds."""
    return json.loads(Path(folder, "result.json").read_text())


TOY = {"task": "toy:", "box": "toy:", "method": "momentum", "budget": 20}


@pytest.fixture
def devices(monkeypatch) -> list[str]:
    """Devices that boxes named `anywhere:` are opened on: the toy, which counts as a GPU's where it is asked to."""
    import torch

    opened: list[str] = []

    def open_anywhere(request):
        opened.append(request.device)
        return ToyBox(uri=request.uri, classes=request.classes, template=request.template, gives=request.gives)

    monkeypatch.setattr(boxes, "open_anywhere", open_anywhere, raising=False)
    monkeypatch.setitem(boxes.SCHEMES, "anywhere", "engine.boxes:open_anywhere")
    monkeypatch.setattr(boxes, "WITHOUT_TORCH", frozenset({"toy", "anywhere"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(boxes, "_check_device", lambda device, torch: None)
    return opened


def test_where_it_was_computed_is_noted_and_refuses_nothing(tmp_path, devices, capsys):
    result = tune(out=tmp_path / "run", **{**TOY, "box": "anywhere:", "device": "cuda"})
    artifact = Artifact.load(tmp_path / "run")
    assert artifact.meta["provenance"] == {**read_result(tmp_path / "run")["fingerprint"], "path": "plain"}
    assert artifact.meta["provenance"]["device"] == "cuda" and set(devices) == {"cuda"}
    assert not {"device", "torch", "cpu"} & set(artifact.meta["identity"])
    for device in ("cpu", "cuda"):
        devices.clear()
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(tmp_path / "run"), "--device", device, "--json"])
        told = json.loads(capsys.readouterr().out)
        assert not ended.value.code and told["accuracy"] == result.metrics["accuracy"] and devices == [device]


def test_an_embedded_model_is_the_same_on_any_device(tmp_path):
    """What torch computes with is no part of what it is: an artifact of a GPU, as far as one can be made without."""
    result = tune(out=tmp_path / "run", task="mini:digits", method="zero-shot", shots=1, budget=5)
    meta = json.loads((tmp_path / "run/artifact" / META).read_text())
    assert set(meta["identity"]) == {"weights", "model", "activation", "preprocess"}
    meta["provenance"] |= {"device": "cuda", "torch": "1.0", "canary": "0" * 16}
    (tmp_path / "run/artifact" / META).write_text(json.dumps(meta))
    assert evaluate(Artifact.load(tmp_path / "run"))["accuracy"] == result.metrics["accuracy"]


def test_a_comparison_reads_its_artifacts_where_it_tuned_them(tmp_path, devices):
    settings = {"tasks": ["toy:"], "boxes": ["anywhere:"], "methods": ["momentum"], "seeds": [1], "budget": 20}
    wanted = make_comparison({**settings, "base_to_new": True, "shift": ["toy:?seed=9"]}, ["device=cuda"])
    compare(wanted, tmp_path / "c", cluster=Cluster(parallel=0))
    (folder,) = (tmp_path / "c" / "trials").iterdir()
    reads = json.loads((folder / READS).read_text())
    assert reads["new"]["accuracy"] > 0 and reads["shift"]["toy:?seed=9"]["accuracy"] > 0 and set(devices) == {"cuda"}


@pytest.mark.parametrize("scheme", ["folder", "coop"])
def test_a_relative_path_is_found_from_another_folder(tmp_path, capsys, monkeypatch, scheme):
    rows = []
    for label, name in enumerate(("red", "blue")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
            rows.append([f"{name}/{number}.png", label, name])
    (tmp_path / "images" / "split_zhou_Two.json").write_text(json.dumps(dict.fromkeys(("train", "val", "test"), rows)))
    monkeypatch.chdir(tmp_path)
    uri = f"{scheme}:images?template=a {{}}"
    result = tune(out="run", **{**TOY, "task": uri, "shots": 1})
    assert read_result("run")["task"] == f"{scheme}:{tmp_path}/images?template=a {{}}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    artifact = Artifact.load(tmp_path / "run")
    assert artifact.meta["task"]["uri"] == f"{scheme}:{tmp_path}/images?template=a {{}}"
    assert evaluate(artifact)["accuracy"] == result.metrics["accuracy"]


FRAME = {"task": "mini:digits", "method": "momentum", "shots": 1, "budget": 8}


def test_a_frame_is_gone_on_with(tmp_path):
    tune(out=tmp_path / "first", **FRAME, prompt={"name": "pixels", "grid": 3, "width": 4})
    first = Artifact.load(tmp_path / "first")
    still = {"name": "momentum", "radius": 1e-6, "h": 1e-6}
    after = tune(out=tmp_path / "second", **{**FRAME, "method": still, "budget": 16}, start=str(tmp_path / "first"))
    second = Artifact.load(tmp_path / "second")
    assert (
        read_result(tmp_path / "second")["prompt"] == "pixels"
        and second.meta["parametrization"] == first.meta["parametrization"]
    )
    np.testing.assert_allclose(second.arrays["pixels"], first.arrays["pixels"], atol=1e-4)
    assert np.abs(first.arrays["pixels"]).max() > 0.01
    assert after.metrics["train_loss"] == pytest.approx(first.meta["metrics"]["train_loss"], abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "words"}, "its prompt is pixels, this run searches words"),
        ({"prompt": {"name": "text+pixels"}}, "its prompt is pixels, this run searches text.pixels"),
        ({"prompt": {"grid": 5}}, "does not fit this run"),
    ],
)
def test_a_start_that_does_not_fit_is_told(tmp_path, settings, words):
    tune(out=tmp_path / "first", **FRAME, prompt={"name": "pixels", "grid": 3})
    with pytest.raises(ArtifactError, match=words):
        tune(out=tmp_path / "second", **{**FRAME, **settings}, start=str(tmp_path / "first"))


def test_a_start_is_read_before_it_is_used(tmp_path):
    tune(out=tmp_path / "first", **TOY)
    shutil.copytree(tmp_path / "first", tmp_path / "other")
    (tmp_path / "other/artifact/prompt.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="checksum"):
        tune(out=tmp_path / "second", **TOY, start=str(tmp_path / "other"))


def test_other_tasks_and_halves_take_what_carries_over(tmp_path):
    tune(out=tmp_path / "prompt", **TOY)
    tune(out=tmp_path / "head", **{**TOY, "method": "head:gda"})
    prompt, head = Artifact.load(tmp_path / "prompt"), Artifact.load(tmp_path / "head")
    told = evaluate(prompt, half="new")
    assert told["recorded_accuracy"] is None and told["images"] == 200 and told["accuracy"] > 0
    assert evaluate(head, task_uri="toy:?seed=9")["recorded_accuracy"] is None  # the same classes
    with pytest.raises(ArtifactError, match="only the classes"):
        evaluate(head, half="new")


def test_a_head_on_features_under_a_frame_is_read_back(tmp_path):
    settings = {"prompt": {"name": "pixels", "grid": 3}, "head": "linear"}
    result = tune(out=tmp_path / "run", **FRAME, **settings)
    assert evaluate(Artifact.load(tmp_path / "run"))["accuracy"] == result.metrics["accuracy"]
