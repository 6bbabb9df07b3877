import json

import numpy as np
import pytest

from engine.artifact import Artifact
from engine.errors import ArtifactError


def test_round_trip_and_replacement(tmp_path):
    arrays = {"theta": np.arange(3, dtype=np.float32), "context": np.ones((2, 4), np.float32).T}
    Artifact(meta={"box": "toy:", "classes": ["a"]}, arrays=arrays).save(tmp_path / "run" / "artifact")
    Artifact(meta={"box": "toy:", "classes": ["b"]}, arrays=arrays).save(tmp_path / "run" / "artifact")
    loaded = Artifact.load(tmp_path / "run")
    assert loaded.meta == {"box": "toy:", "classes": ["b"]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["artifact"]


def test_refuses_what_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="holds no keyhole.json"):
        Artifact.load(tmp_path)
    Artifact(meta={}, arrays={"theta": np.zeros(1, np.float32)}).save(tmp_path / "a")
    (tmp_path / "a" / "prompt.safetensors").write_bytes(b"half")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.load(tmp_path / "a")
    Artifact(meta={}, arrays={"theta": np.zeros(1, np.float32)}).save(tmp_path / "b")
    (tmp_path / "b" / "keyhole.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        Artifact.load(tmp_path / "b")
