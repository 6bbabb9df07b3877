"""Hugging Face's own client, over a socket."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from engine.classifier import Classifier

LABELS = ["digit two", "digit one"]


@pytest.fixture
def client(address):
    return InferenceClient(model=f"{address}/models/digits", token="unused")


@pytest.fixture(scope="module")
def http(api):
    return TestClient(api, raise_server_exceptions=False)


def test_image_classification(client, runs, photo):
    image = photo()
    labels, (probabilities,) = Classifier.load(runs["digits"]).predict(image)
    for found in (client.image_classification(image), client.image_classification(image, top_k=3)):
        assert found[0].label == labels[0]
        assert [entry.score for entry in found] == pytest.approx(sorted(probabilities)[::-1][: len(found)], abs=1e-5)
    assert len(found) == 3


def test_zero_shot_takes_the_tuned_context_or_the_bare_template(client, address, runs, photo):
    image = photo()
    tuned = Classifier.load(runs["digits"])
    _, (expected,) = tuned.open(classes=LABELS).predict(image)
    found = {entry.label: entry.score for entry in client.zero_shot_image_classification(image, LABELS)}
    assert [found[label] for label in LABELS] == pytest.approx(list(expected), abs=1e-5)
    tuned.artifact.arrays.pop("context")
    _, (expected,) = tuned.open(classes=LABELS, template="a photo of the {}.").predict(image)
    bare = InferenceClient(model=f"{address}/models/digits@zero-shot", token="unused")
    told = bare.zero_shot_image_classification(image, LABELS, hypothesis_template="a photo of the {}.")
    found = {entry.label: entry.score for entry in told}
    assert [found[label] for label in LABELS] == pytest.approx(list(expected), abs=1e-5)


def test_the_client_is_told_why(client, address, photo):
    with pytest.raises(HfHubHTTPError, match="the image: not a readable image"):
        client.image_classification(photo(1, size=(64, 64))[:-200])
    with pytest.raises(HfHubHTTPError, match="no model 'nobody' here"):
        InferenceClient(model=f"{address}/models/nobody", token="unused").image_classification(photo())


def test_labels_alone_have_no_score(http, photo):
    found = http.post("/models/labels", content=photo())
    assert found.status_code == 200 and {entry["score"] for entry in found.json()} == {None}


@pytest.mark.parametrize(
    ("parameters", "status", "told"),
    [
        ({"candidate_labels": ["unheard-of", "digit one"]}, 400, "unheard"),
        ({"candidate_labels": ["digit one", "digit one"]}, 400, "all different"),
        ({"candidate_labels": []}, 422, "candidate_labels"),
        ({"candidate_labels": LABELS, "hypothesis_template": "a {}."}, 400, "@zero-shot"),
        ({"hypothesis_template": "a {}."}, 400, "labels"),
        ({"function_to_apply": "sigmoid"}, 422, "softmax"),
    ],
)
def test_parameters_that_cannot_be_used(http, photo, in_base64, parameters, status, told):
    answer = http.post("/models/digits", json={"inputs": in_base64(photo(), uri=True), "parameters": parameters})
    assert answer.status_code == status and told in answer.json()["error"]
