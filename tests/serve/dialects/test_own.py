"""Our own answers: every way to send an image, all that a model gives, and a bad image of a batch."""

from __future__ import annotations

import numpy as np
import pytest
from fastapi.testclient import TestClient

from engine.classifier import Classifier

PATH = "/v1/models/digits/answers"


@pytest.fixture(scope="module")
def client(api):
    return TestClient(api, raise_server_exceptions=False)


def test_every_way_to_send_an_image(client, runs, photo, in_base64):
    image = photo()
    (label,), (expected,) = Classifier.load(runs["digits"]).predict(image)
    ways = [
        {"content": image},
        {"content": image, "headers": {"content-type": "image/png"}},
        {"content": image, "headers": {"content-type": "application/octet-stream"}},
        {"json": {"images": [in_base64(image)]}},
        {"json": {"images": [in_base64(image, uri=True)]}},
        {"files": {"image": ("a.png", image, "image/png")}},
        {"files": [("image", (None, in_base64(image)))]},
    ]
    for way in ways:
        reply = client.post(PATH, **way).json()
        (answer,) = reply["answers"]
        assert answer["label"] == label and len(reply["classes"]) == 10
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        assert answer["probability"] == pytest.approx(expected.max(), abs=1e-5)


def test_an_answer_says_who_gave_it_and_all_that_is_asked_for(client, runs, photo):
    classifier = Classifier.load(runs["digits"])
    for include in ((), ("scores",), ("probabilities", "features"), ("probabilities", "scores", "features")):
        reply = client.post(PATH, content=photo(), params={"include": include} if include else None).json()
        (answer,) = reply["answers"]
        told = {key for key in ("probabilities", "scores", "features") if answer[key] is not None}
        assert told == set(include or ("probabilities",))
        assert (answer["artifact"], answer["version"]) == ("digits", classifier.artifact.digest[:12])
        assert answer["model"].startswith("mini:resnet#") and answer["milliseconds"]["encode"] > 0
    assert reply["classes"][int(np.argmax(answer["scores"]))] == answer["label"]
    assert np.linalg.norm(answer["features"]) == pytest.approx(1, abs=1e-5)


def test_one_bad_image_fails_alone(client, runs, photo, in_base64):
    images = [photo(0), photo(1, size=(64, 64))[:-200], b"%PDF-1.4", photo(2)]
    labels, _ = Classifier.load(runs["digits"]).predict([images[0], images[3]])
    batches = [
        {"json": {"images": [in_base64(image) for image in images]}},
        {"files": [("image", (f"{number}.png", image)) for number, image in enumerate(images)]},
    ]
    for batch in batches:
        reply = client.post(PATH, **batch)
        first, cut, alien, last = reply.json()["answers"]
        assert reply.status_code == 200 and [first["label"], last["label"]] == labels
        assert (cut["code"], alien["code"]) == ("bad_image", "unsupported_type") and cut["error"]
    assert client.post(PATH, json={"images": [in_base64(images[2]), "!"]}).status_code == 415


def test_other_classes(client, runs, photo, in_base64):
    image, labels = photo(), ["digit two", "digit one"]
    _, (expected,) = Classifier.load(runs["digits"]).open(classes=labels).predict(image)
    ways = [
        {"json": {"images": [in_base64(image)], "labels": labels}},
        {"files": {"image": image}, "data": {"labels": labels}},
    ]
    for way in ways:
        reply = client.post(PATH, **way).json()
        assert reply["classes"] == labels
        np.testing.assert_allclose(reply["answers"][0]["probabilities"], expected, atol=1e-5)
    told = {"labels": labels, "template": "a photo of the {}."}
    assert client.post(PATH, files={"image": image}, data=told).status_code == 400
    assert client.post("/v1/models/digits@zero-shot/answers", files={"image": image}, data=told).status_code == 200


def test_models_that_give_less_send_null(client, photo):
    (answer,) = client.post("/v1/models/labels/answers?include=scores&include=features", content=photo()).json()[
        "answers"
    ]
    assert answer["label"] and answer["probability"] is None
    assert answer["scores"] is None and answer["features"] is None
    (answer,) = client.post("/v1/models/labels/answers", content=photo()).json()["answers"]
    assert set(answer["probabilities"]) == {None}


@pytest.mark.parametrize(
    ("send", "status"),
    [
        ({"content": b""}, 400),
        ({"content": b"text", "headers": {"content-type": "text/plain"}}, 415),
        ({"json": {"images": []}}, 422),
        ({"json": {"images": ["x"], "more": 1}}, 422),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422),
        ({"files": {"picture": b"x"}}, 400),
        ({"files": {"image": b"x"}, "data": {"more": "1"}}, 422),
        ({"files": {"image": b"x"}, "data": {"template": ["a {}", "b {}"]}}, 422),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": b"nothing", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"x", "params": {"include": "everything"}}, 422),
    ],
)
def test_requests_that_do_not_fit(client, send, status):
    answer = client.post(PATH, **send)
    assert answer.status_code == status and set(answer.json()) == {"error", "code"}, answer.text
