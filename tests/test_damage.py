"""Artifacts that were damaged, or made to harm: one sentence, or the recorded result, and never code."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import dumped, mutated_arrays, mutated_bytes, mutated_json
from PIL import Image
from safetensors.numpy import load, save

from engine.artifact import ARRAYS, META, Artifact
from keyhole import tune
from keyhole.cli import main
from tuning.evaluate import AGREE

MUTATIONS = 150
"""Of each of the kinds below."""
KINDS = {
    "shared context": {"task": "toy:", "box": "toy:", "method": "momentum"},
    "context per class": {"task": "toy:", "box": "toy:", "method": "sketch"},
    "linear head": {"task": "toy:", "box": "toy:", "method": "head:linear"},
    "tip head": {"task": "toy:", "box": "toy:", "method": "head:tip"},
    "score head": {"task": "toy:", "box": "toy:?gives=scores", "method": "head:score-adapter"},
    "frame": {"method": "momentum", "prompt": {"name": "text+pixels", "grid": 3}},
    "words": {"method": "words"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A finished run of each kind."""
    home = tmp_path_factory.mktemp("runs")
    for label, (name, colour) in enumerate((("red", (150, 90, 90)), ("blue", (90, 90, 150)))):
        (home / "images" / name).mkdir(parents=True)
        for number in range(40):
            noise = np.random.default_rng([label, number]).normal(0, 60, (32, 32, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(home / "images" / name / f"{number}.png")
    for kind, settings in KINDS.items():
        own = {"task": f"folder:{home / 'images'}?test=0.8", "box": "mini:resnet"}
        tune(out=home / kind, **{**own, "shots": 4, "budget": 20, **settings})
    return {kind: home / kind for kind in KINDS}


def evaluated(capsys, *arguments: str) -> tuple[int, dict]:
    """`keyhole eval --json` in this process: exit code and what it says. No traceback, one object, one sentence."""
    with pytest.raises(SystemExit) as ended:
        main(["eval", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and out.count("\n") == 1, err
    told = json.loads(out)
    if ended.value.code:
        assert set(told) == {"error"} and "\n" not in told["error"] and 20 < len(told["error"]) < 1000, told
    return ended.value.code or 0, told


def damage(folder: Path, others: list[Path], rng: np.random.Generator) -> str:
    """Harm an artifact in place; says how. Half of the harmed arrays get a checksum to match."""
    meta, arrays = folder / META, folder / ARRAYS
    mend = bool(rng.random() < 0.5)
    kind = str(rng.choice(["json"] * 8 + ["arrays"] * 6 + ["array bytes"] * 2 + ["json bytes", "files"]))
    if kind == "json":
        what, tree = mutated_json(json.loads(meta.read_text()), rng)
        meta.write_text(dumped(tree), encoding="utf-8")
    elif kind == "json bytes":
        what, data = mutated_bytes(meta.read_bytes(), rng)
        meta.write_bytes(data)
    elif kind == "files":
        what = str(rng.choice(["no metadata", "no arrays", "exchanged", "another's arrays", "another's metadata"]))
        other = others[int(rng.integers(len(others)))] / "artifact"
        if what == "exchanged":
            one, two = meta.read_bytes(), arrays.read_bytes()
            meta.write_bytes(two)
            arrays.write_bytes(one)
        elif what.startswith("no "):
            (meta if what == "no metadata" else arrays).unlink()
        else:
            name = ARRAYS if what == "another's arrays" else META
            shutil.copy(other / name, folder / name)
            if mend:
                sign(folder)
    else:
        if kind == "arrays":
            what, harmed = mutated_arrays(load(arrays.read_bytes()), rng)
            arrays.write_bytes(save({name: np.asarray(array, order="C") for name, array in harmed.items()}))
        else:
            what, data = mutated_bytes(arrays.read_bytes(), rng)
            arrays.write_bytes(data)
        if mend:
            sign(folder)
            what += ", signed"
    return f"{kind}: {what}"


def sign(folder: Path) -> None:
    """Put the arrays' checksum into the metadata."""
    meta = json.loads((folder / META).read_text())
    meta["sha256"] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    (folder / META).write_text(json.dumps(meta))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_artifact_is_refused_in_a_sentence_or_gives_what_was_recorded(tmp_path, capsys, runs, kind):
    ends: Counter[str] = Counter()
    intact = evaluated(capsys, str(runs[kind]))[1]
    assert intact["accuracy"] == intact["recorded_accuracy"]
    others = [folder for name, folder in runs.items() if name != kind]
    for seed in range(MUTATIONS):
        folder = tmp_path / str(seed)
        shutil.copytree(runs[kind] / "artifact", folder)
        what = damage(folder, others, np.random.default_rng([seed, *kind.encode()]))
        code, told = evaluated(capsys, str(folder))
        if code:
            assert code == 2, f"{what}: {told}"
            ends[told["error"].removeprefix(str(folder))[:40]] += 1
            continue
        same = [told[name] == intact[name] for name in ("accuracy", "zero_shot_accuracy", "images")]
        # Arrays that were signed anew are another artifact; it may be read where it is as good as it says.
        near = abs(told["accuracy"] - told["recorded_accuracy"]) <= max(AGREE, 2 / told["images"])
        assert all(same) or ("signed" in what and near), f"{what}: {told}, and not {intact}"
        ends["as recorded"] += 1
        shutil.rmtree(folder)
    assert 0.02 < ends["as recorded"] / MUTATIONS < 0.4 and len(ends) > 20, ends


CODE = "sympy.core.sympify:sympify:__import__('os').system('touch PWNED')"
"""A function that evaluates its argument, and stands among torch's own dependencies."""


def rewritten(source: Path, target: Path, **changes) -> Path:
    """A copy of an artifact whose metadata says otherwise."""
    shutil.copytree(source / "artifact", target)
    meta = json.loads((target / META).read_text())
    (target / META).write_text(json.dumps({**meta, **changes}))
    return target


def test_an_artifact_runs_no_code(tmp_path, capsys, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    own = Artifact.load(runs["shared context"]).meta
    harm: dict[str, Any] = {
        "task": {**own["task"], "uri": CODE},
        "box": CODE,
        "parametrization": {**own["parametrization"], "name": CODE},
    }
    for name, value in harm.items():
        folder = rewritten(runs["shared context"], tmp_path / name, **{name: value})
        code, told = evaluated(capsys, str(folder))
        assert name == "parametrization" or code == 2, told
        with pytest.raises(SystemExit) as ended:
            main(["tune", "--task", "toy:", "--box", "toy:", "--method", "momentum", "--budget", "20",
                  "--from", str(folder), "--out", str(tmp_path / f"{name}-run")])  # fmt: skip
        told = capsys.readouterr().err
        assert ended.value.code == (2 if name == "parametrization" else 0), told  # a task and a box were typed
    assert not (tmp_path / "PWNED").exists()
    assert "name it with --task" in evaluated(capsys, str(tmp_path / "task"))[1]["error"]
    # What the user types is the user's word.
    code, told = evaluated(capsys, str(tmp_path / "task"), "--task", "engine.boxes.toy:toy_task")
    assert code == 0 and told["accuracy"] == own["metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ["square", "circle", "triangle", "star", "cross"]}, "'square' and 'circle'"),
        ({"classes": ["circle", "square"]}, "5"),
        ({"classes": ["circle"] * 5}, "all be different"),
        ({"template": "a picture of a {}."}, "a picture of a {}."),
        ({"template": "no place"}, "one {}"),
        ({"identity": {}}, "preprocess, weights differ"),
        ({"identity": 3}, "identity: input should be a valid dictionary"),
        ({"task": None}, "task"),
        ({"head": "linear"}, "head is 'linear', but the arrays hold none"),
        ({"head": "magic"}, "clip-adapter"),
        ({"sha256": None}, "checksum"),
        ({"more": 1}, "more: extra inputs are not permitted"),
    ],
)
@pytest.mark.parametrize("kind", ["shared context", "context per class"])
def test_metadata_that_does_not_fit_is_named(tmp_path, capsys, runs, kind, changes, words):
    code, told = evaluated(capsys, str(rewritten(runs[kind], tmp_path / "a", **changes)))
    assert code == 2 and words in told["error"], told


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("shared context", {"context": None}, "parametrization is 'text', which does not fit the arrays: context"),
        ("shared context", {"context": np.zeros((1, 5, 4, 8), np.float32)}, "which no prompt is"),
        ("shared context", {"context": np.full((4, 8), np.nan, np.float32)}, "'context' holds values that are not"),
        ("shared context", {"context": np.full((4, 8), np.finfo(np.float32).max)}, "the artifact records accuracy"),
        ("shared context", {"context": np.zeros((0, 8), np.float32)}, "empty"),
        ("shared context", {"context": np.zeros((4, 9), np.float32)}, "9 wide"),
        ("shared context", {"context": np.zeros((4, 8), np.float32)}, "the artifact records accuracy"),
        ("context per class", {"context": np.zeros((4, 4, 8), np.float32)}, "4 classes, but 5"),
        ("tip head", {"head.tip.keys": None}, "head 'tip' lacks 'keys'"),
        ("tip head", {"head.tip.labels": np.full(20, 5)}, "classes that there are not"),
        ("tip head", {"head.linear.bias": np.zeros(5, np.float32)}, "not of one head"),
        ("linear head", {"head.linear.weight": None, "head.linear.bias": None}, "lacks"),
        ("linear head", {"head.linear.weight": np.zeros((5, 9), np.float32)}, "features that it was trained on"),
        ("score head", {"head.score-adapter.out": np.zeros((3, 5), np.float32)}, "does not fit the rest"),
        ("frame", {"pixels": np.zeros((3, 8, 8), np.float32)}, "8 pixels wide"),
        ("frame", {"pixels": np.zeros((32, 32), np.float32)}, "no prompt is"),
        ("words", {"words": np.frombuffer(b"\xff\xfe {}", np.uint8)}, "no template in UTF-8"),
        ("words", {"words": np.frombuffer(b"a photo", np.uint8)}, "one {}"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, capsys, runs, kind, changes, words):
    folder = rewritten(runs[kind], tmp_path / "a")
    arrays = {**load((folder / ARRAYS).read_bytes()), **changes}
    (folder / ARRAYS).write_bytes(save({name: array for name, array in arrays.items() if array is not None}))
    assert "checksum" in evaluated(capsys, str(folder))[1]["error"]
    sign(folder)
    code, told = evaluated(capsys, str(folder))
    assert code == 2 and words in told["error"], told
