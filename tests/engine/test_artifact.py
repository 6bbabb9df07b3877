import json

import numpy as np
import pytest

from engine.artifact import Artifact
from engine.errors import ArtifactError

THETA = {"theta": np.zeros(1, np.float32)}


def meta(**settings) -> dict:
    """The metadata of an artifact that searched no prompt."""
    return {
        "keyhole": "0.1",
        "box": "toy:",
        "identity": {"weights": "toy-1", "preprocess": {"size": 8}},
        "provenance": {"device": "cpu", "torch": None},
        "task": {"uri": "toy:", "shots": 1, "half": "all", "seed": 1},
        "classes": ["a", "b"],
        "template": "a {}",
        "parametrization": None,
        "method": "zero-shot",
        "head": None,
        "ledger": {"pairs": 3, "cost": None},
        "metrics": {
            "test_images": 8,
            "zero_shot_accuracy": 0.5,
            "accuracy": 0.5,
            "val_accuracy": 0.5,
            "train_loss": None,
        },
        "contains": {"training_features": False, "training_labels": False},
        "licence": {"artifact": None},
        **settings,
    }


def test_round_trip_and_replacement(tmp_path):
    arrays = {"theta": np.arange(3, dtype=np.float32), "context": np.ones((2, 4), np.float32).T}
    Artifact(meta=meta(classes=["a"]), arrays=arrays).save(tmp_path / "run" / "artifact")
    Artifact(meta=meta(classes=["b"]), arrays=arrays).save(tmp_path / "run" / "artifact")
    loaded = Artifact.load(tmp_path / "run")
    assert loaded.meta == meta(classes=["b"])
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["artifact"]


def test_refuses_what_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="holds no keyhole.json"):
        Artifact.load(tmp_path)
    Artifact(meta=meta(), arrays=THETA).save(tmp_path / "a")
    (tmp_path / "a" / "prompt.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="not the file whose checksum"):
        Artifact.load(tmp_path / "a")
    Artifact(meta=meta(), arrays=THETA).save(tmp_path / "b")
    (tmp_path / "b" / "keyhole.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        Artifact.load(tmp_path / "b")
