"""The Open Inference Protocol: metadata, readiness, tensors, and a bad image of a batch."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient

from engine.classifier import Classifier
from serve.dialects.open_inference import OUTPUTS


@pytest.fixture(scope="module")
def client(api):
    return TestClient(api, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def infer(client, in_base64):
    """The answer to images: `infer(images, path="digits", **more)`."""

    def ask(images, path: str = "digits", shape=None, **more):
        data = [in_base64(image) if isinstance(image, bytes) else image for image in images]
        tensor = {"name": "image", "datatype": "BYTES", "shape": shape or [len(data)], "data": data}
        return client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor], **more})

    return ask


def test_server_and_model_metadata(client, runs):
    server = client.get("/v2").json()
    assert server["name"] == "keyhole" and server["version"]
    digest = Classifier.load(runs["digits"]).artifact.digest[:12]
    for path in ("digits", f"digits/versions/{digest}"):
        found = client.get(f"/v2/models/{path}").json()
        assert (found["name"], found["versions"], found["platform"]) == ("digits", [digest], "keyhole")
        assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        shapes = {output["name"]: output["shape"] for output in found["outputs"]}
        assert set(shapes) == set(OUTPUTS) and shapes["probabilities"] == [-1, 10] and shapes["classes"] == [10]
    assert client.get("/v2/models/digits@zero-shot").json()["versions"] == [digest]
    for path in ("nobody", "digits/versions/ffff", "nobody/ready", "digits/versions/ffff/ready"):
        answer = client.get(f"/v2/models/{path}")
        assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_ready(client):
    for path in ("digits/ready", "digits/versions/latest/ready", "digits@latest/ready"):
        found = client.get(f"/v2/models/{path}")
        assert found.status_code == 200 and found.json()["ready"] is True


def test_outputs_are_the_classifiers(infer, runs, photo, in_base64):
    images, classifier = [photo(seed) for seed in range(3)], Classifier.load(runs["digits"])
    labels, probabilities = classifier.predict(images)
    wanted = [{"name": name} for name in OUTPUTS]
    digest = classifier.artifact.digest[:12]
    for path in ("digits", "digits/versions/latest", f"digits/versions/{digest}"):
        reply = infer(images, path, id="42", outputs=wanted).json()
        assert (reply["id"], reply["model_name"], reply["model_version"]) == ("42", "digits", digest)
        assert reply["parameters"]["model"].startswith("mini:resnet#") and reply["parameters"]["encode_s"] > 0
        assert [output["name"] for output in reply["outputs"]] == list(OUTPUTS)
        found = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in reply["outputs"]}
        assert list(found["label"]) == labels and list(found["error"]) == [""] * 3
        np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_allclose(found["probability"], probabilities.max(axis=1), atol=1e-5)
        np.testing.assert_array_equal(found["scores"].argmax(axis=1), probabilities.argmax(axis=1))
        np.testing.assert_allclose(np.linalg.norm(found["features"], axis=1), 1, atol=1e-5)
    # Rows of one, as Triton's clients shape a batch.
    column = infer([[in_base64(image)] for image in images], shape=[3, 1]).json()
    assert column["outputs"][0]["data"] == labels


def test_one_bad_image_fails_alone(infer, photo):
    images = [photo(0), photo(1, size=(64, 64))[:-200], "not base64!", photo(2)]
    reply = infer(images)
    assert "id" not in reply.json()
    found = {output["name"]: output for output in reply.json()["outputs"]}
    assert reply.status_code == 200
    assert [bool(error) for error in found["error"]["data"]] == [False, True, True, False]
    assert [bool(label) for label in found["label"]["data"]] == [True, False, False, True]
    probabilities = np.array(found["probabilities"]["data"], np.float64).reshape(found["probabilities"]["shape"])
    assert np.isnan(probabilities[1:3]).all()
    lone = infer([photo(2)]).json()["outputs"][2]["data"]
    np.testing.assert_allclose(probabilities[3], lone, atol=1e-5)
    # Who does not read `error` could not tell: all or nothing.
    assert infer(images, outputs=[{"name": "label"}]).status_code == 400
    assert infer([images[1]]).status_code == 400


def test_what_a_model_does_not_give(infer, photo):
    reply = infer([photo()], "labels").json()
    found = {output["name"]: output["data"] for output in reply["outputs"]}
    assert found["probability"] == [None] and found["label"][0] in found["classes"]
    refused = infer([photo()], "labels", outputs=[{"name": "features"}])
    assert refused.status_code == 400 and "features" in refused.json()["error"]


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("nobody", {}, 404),
        ("digits", {"shape": [2]}, 400),
        ("digits", {"shape": [1, 1, 1]}, 422),
        ("digits", {"outputs": [{"name": "logits"}]}, 422),
        ("digits", {"inputs": []}, 422),
        ("digits", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1.0]}]}, 422),
    ],
)
def test_requests_that_do_not_fit(infer, photo, path, more, status):
    answer = infer([photo()], path, **more)
    assert answer.status_code == status and set(answer.json()) == {"error"}
