"""Exported files: read as another program would, they answer as the classifier does, or they are not there."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from engine.boxes.clip import onnx_export
from engine.classifier import Classifier
from engine.errors import ArtifactError, RecipeError, RefusedError
from engine.export import TOLERANCE, export
from engine.folded import Folded
from engine.heads import HEADS, MIXTURE, restore
from engine.heads.torch_modules import MODULES, torch_module
from engine.images import Given, one_by_one
from engine.preprocessing import Preprocess
from keyhole import tune
from tuning.data.load_task import load_task

TOY = {"task": "toy:", "box": "toy:", "budget": 60}
MINI = {"task": "mini:digits", "shots": 2, "budget": 20}
KINDS = {
    "shared context": {**TOY, "method": "momentum"},
    "context per class": {**TOY, "method": "sketch"},
    "linear": {**TOY, "method": "head:linear"},
    "gda": {**TOY, "method": "head:gda"},
    "tip": {**TOY, "method": "head:tip"},
    "clip-adapter": {**TOY, "method": "head:clip-adapter"},
    "score-linear": {**TOY, "method": "head:score-linear"},
    "scores alone": {**TOY, "box": "toy:?gives=scores", "method": "momentum"},
    "templates": {**MINI, "method": "words"},
    "resnet": {**MINI, "method": "momentum"},
    "vit": {**MINI, "method": "momentum", "box": "mini:vit"},
    "frame": {**MINI, "method": "momentum", "prompt": {"name": "pixels"}},
    "clamped frame": {**MINI, "method": "momentum", "prompt": {"name": "pixels"}, "box": "mini:resnet?clip=on"},
    "mini tip": {**MINI, "method": "head:tip"},
    "mini score-adapter": {**MINI, "method": "head:score-adapter"},
}
MATRICES = ("shared context", "context per class", "linear", "gda", "templates", "vit")
TOWERS = ("resnet", "vit", "frame", "clamped frame", "mini tip", "mini score-adapter")
REFUSED = {
    "tip": "head tip is no linear function of image features",
    "clip-adapter": "head clip-adapter is no linear",
    "score-linear": "head score-linear is no linear",
    "frame": "holds a pixel frame, .* export it --to onnx",
    "scores alone": "gives scores and no features; name another --box",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run folder of a kind, tuned when it is first asked for."""
    home = tmp_path_factory.mktemp("runs")

    def run(kind: str) -> Path:
        if not (home / kind).exists():
            tune(out=home / kind, **KINDS[kind])
        return home / kind

    return run


def photos(kind: str, count: int = 20) -> list[np.ndarray]:
    """Images that no export has seen."""
    return load_task(KINDS[kind]["task"], shots=1).test.source.read(range(count))


def loaded(folder: Path) -> Classifier:
    """A classifier that is not its template: a run this short may have found no frame."""
    classifier = Classifier.load(folder)
    arrays = classifier.artifact.arrays
    if "pixels" in arrays:
        arrays["pixels"] = np.random.default_rng(0).normal(0, 0.25, arrays["pixels"].shape).astype(np.float32)
    assert "pixels" in arrays or "words" in arrays or classifier.artifact.head() or arrays["theta"].any()
    return classifier


@pytest.mark.parametrize("kind", MATRICES)
def test_rows_are_all_that_numpy_needs(tmp_path, runs, kind):
    classifier, images = loaded(runs(kind)), photos(kind)
    told = export(classifier, "classifier", tmp_path / "a.npz")
    assert told["largest_difference"] < 1e-5 and told["bytes"] == (tmp_path / "a.npz").stat().st_size
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        rows, bias, classes, about = file["rows"], file["bias"], file["classes"], json.loads(str(file["about"]))
    assert rows.dtype == bias.dtype == np.float32 and rows.shape[0] == len(bias) == len(classes)
    labels, probabilities = classifier.predict(images)
    logits = classifier.features(images) @ rows.T + bias
    np.testing.assert_allclose(softmax(logits, axis=-1), probabilities, atol=1e-5)
    assert list(classes[logits.argmax(-1)]) == labels
    assert about["preprocess"] == classifier.identity["preprocess"] and about["identity"] == classifier.identity
    assert about["artifact"] == classifier.artifact.digest and not about["contains"]["training_features"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_matrix_is_refused(tmp_path, runs, kind):
    with pytest.raises(RefusedError, match=REFUSED[kind]):
        export(loaded(runs(kind)), "classifier", tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TOWERS)
def test_onnx_answers_as_the_classifier_does(tmp_path, runs, kind):
    """Pixels made by what the file's metadata say, in batches of several sizes."""
    import onnx
    import onnxruntime

    classifier, images = loaded(runs(kind)), photos(kind)
    told = export(classifier, "onnx", tmp_path / "a.onnx")
    assert told["largest_difference"] < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    source = Given(tuple(images))
    pixels = Preprocess(**about["preprocess"]).pixels(one_by_one(source, range(len(images))))
    labels, probabilities = classifier.predict(images)
    for part in (slice(0, 1), slice(3, 5), slice(0, 20)):
        logits, features = session.run(["logits", "features"], {"pixels": pixels[part]})
        np.testing.assert_allclose(softmax(logits, axis=-1), probabilities[part], atol=1e-5)
        np.testing.assert_allclose(features, classifier.features(images[part]), atol=1e-6)
        assert [about["classes"][best] for best in logits.argmax(-1)] == labels[part]
    assert about["contains"]["training_features"] == (kind == "mini tip")
    assert about["identity"] == classifier.identity and "[0, 1]" in about["input"]
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    content = (tmp_path / "a.onnx").read_bytes()
    assert not [path for path in (torch.__file__, onnx_export.__file__) if str(Path(path).parent).encode() in content]


def test_the_frame_is_clamped_where_the_box_clamps(tmp_path, runs):
    """On white images a positive frame has no effect then."""
    import onnxruntime

    frame = np.full((3, 32, 32), 0.5, np.float32)
    unclamped, clamped = (Classifier.load(runs(kind)) for kind in ("frame", "clamped frame"))
    for classifier in (unclamped, clamped):
        classifier.artifact.arrays["pixels"] = frame
    export(clamped, "onnx", tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    features = session.run(["features"], {"pixels": np.ones((1, 3, 32, 32), np.float32)})[0]
    white = np.full((32, 32, 3), 255, np.uint8)
    np.testing.assert_allclose(features, Classifier.load(runs("resnet")).features(white), atol=1e-6)
    assert np.abs(features - unclamped.features(white)).max() > 1e-3


@pytest.mark.slow
def test_a_tower_of_real_size(tmp_path):
    box = "open_clip:ViT-B-32,random"
    tune(box, "mini:digits", shots=1, budget=4, method="zero-shot", test_images=10, out=tmp_path / "run")
    told = export(Classifier.load(tmp_path / "run"), "onnx", tmp_path / "a.onnx")
    assert told["largest_difference"] < 1e-5 and 350e6 < told["bytes"] < 360e6


@pytest.mark.parametrize("kind", MODULES)
def test_every_head_as_a_torch_module(kind):
    random, sizes = np.random.default_rng(0), {"C": 4, "E": 6, "K": 3, "n": 5, "T": 2}
    own = {name: path.removesuffix(".fit") for name, path in HEADS.items() if path.endswith(".fit")} | MIXTURE
    module, _, name = own[kind].partition(":")
    cls = getattr(importlib.import_module(module), name)
    state = {field.name: np.float64(0.5) for field in fields(cls)}
    for field, letters in cls.shapes.items():
        state[field] = random.normal(size=[sizes[letter] for letter in letters]).astype(np.float32)
    if "labels" in state:
        state["labels"] = random.integers(0, 4, 5)
    head = restore(kind, state, 4)
    read = random.normal(size=(7, head.width)).astype(np.float32)
    read /= np.linalg.norm(read, axis=-1, keepdims=True)
    np.testing.assert_allclose(torch_module(head)(torch.from_numpy(read)), head.scores(read), rtol=1e-5, atol=1e-6)


def test_no_head_lacks_a_torch_module():
    assert set(MODULES) == {name for name, path in HEADS.items() if path.endswith(".fit")} | set(MIXTURE)


def test_an_export_that_differs_is_not_written(tmp_path, runs, monkeypatch):
    (tmp_path / "a").write_text("earlier")
    with pytest.raises(ArtifactError, match=r"differ from the artifact's by up to .*name the box without it"):
        export(Classifier.load(runs("resnet")).open("mini:resnet?precision=bf16"), "onnx", tmp_path / "a")
    classifier, matrix = Classifier.load(runs("shared context")), Folded.matrix
    monkeypatch.setattr(Folded, "matrix", lambda folded: (matrix(folded)[0] * np.float32(1.01), matrix(folded)[1]))
    with pytest.raises(ArtifactError, match="is not written"):
        export(classifier, "classifier", tmp_path / "a")
    monkeypatch.setattr(Folded, "matrix", lambda folded: (matrix(folded)[0] * np.float32("nan"), matrix(folded)[1]))
    with pytest.raises(ArtifactError, match="by up to nan"):
        export(classifier, "classifier", tmp_path / "a")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_boxes_that_onnx_cannot_hold(tmp_path, runs, monkeypatch):
    with pytest.raises(RefusedError, match="toy: is no open_clip model as it is"):
        export(Classifier.load(runs("shared context")), "onnx", tmp_path / "a")
    with pytest.raises(RefusedError, match="jpeg=50 is no open_clip model as it is"):
        export(Classifier.load(runs("resnet")).open("mini:resnet?jpeg=50"), "onnx", tmp_path / "a")
    with pytest.raises(RefusedError, match="gives labels, scores, topk and no features"):
        export(Classifier.load(runs("resnet")).open("mini:resnet?noise=0.1"), "onnx", tmp_path / "a")
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 10**6)
    with pytest.raises(RefusedError, match="the image tower of mini:resnet has 0.0 GB, and an ONNX file holds"):
        export(Classifier.load(runs("resnet")), "onnx", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_onnx_lacks_ends_in_one_sentence(tmp_path, runs, monkeypatch):
    classifier = Classifier.load(runs("resnet"))

    def odd(pixels: torch.Tensor, normalize: bool) -> torch.Tensor:
        return pixels.flatten(1).numpy()  # what cannot be traced

    monkeypatch.setattr(classifier.box.model, "encode_image", odd)
    with pytest.raises(RefusedError, match="the image tower of mini:resnet cannot be expressed in ONNX"):
        export(classifier, "onnx", tmp_path / "a")


def test_without_the_extra(tmp_path, runs, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else there(name))
    with pytest.raises(RecipeError, match=r"needs the package 'onnxscript'; .*pip install -e '\.\[export\]'"):
        export(Classifier.load(runs("resnet")), "onnx", tmp_path / "a")


def test_the_command(tmp_path, runs, command):
    run = runs("context per class")
    code, out, _ = command("export", str(run), "--json")
    told = json.loads(out)
    assert code == 0 and told["out"] == f"{run}.npz" and told["largest_difference"] <= TOLERANCE
    assert Path(told["out"]).stat().st_size == told["bytes"]
    code, out, _ = command("export", str(run), "--out", str(tmp_path / "new" / "a.npz"))
    assert code == 0 and "largest_difference" in out and (tmp_path / "new" / "a.npz").exists()
    for words, said in (
        (("--to", "onxx"), "unknown, did you mean 'onnx'?"),
        (("--out", str(tmp_path)), "is a folder; name a file"),
        (("--to", "onnx"), "no open_clip model"),
        (("--box", "mini:resnet"), "wide"),
    ):
        code, out, err = command("export", str(run), *words)
        assert code == 2 and said in err and len(err.strip().splitlines()) == 1, err
    code, _, err = command("export", str(tmp_path / "none"))
    assert code == 2 and "holds no keyhole.json" in err
