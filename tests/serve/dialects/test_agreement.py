"""Whatever the dialect, the numbers are the classifier's; a bad image fails alone; errors have the dialect's form."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from fastapi.testclient import TestClient

from engine.classifier import Classifier
from serve.answering import Refusal
from serve.routes import make_api

KINDS = ("digits", "pixels", "words", "linear", "context-per-class", "top-k", "labels")


@pytest.fixture(scope="module")
def client(api):
    return TestClient(api, raise_server_exceptions=False)


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _uri(image: bytes) -> str:
    return f"data:image/png;base64,{_text(image)}"


def _numbers(row: list) -> np.ndarray:
    return np.array(row, dtype=np.float64)


def _hugging_face(client, name, image, classes):
    found = {entry["label"]: entry["score"] for entry in client.post(f"/models/{name}", content=image).json()}
    return _numbers([found[label] for label in classes])


def _open_inference(client, name, image, classes):
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [_text(image)]}
    outputs = {
        output["name"]: output["data"]
        for output in client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()["outputs"]
    }
    assert outputs["classes"] == list(classes)
    return _numbers(outputs["probabilities"])


def _decisions(client, name, image, classes):
    choices = [{"value": label} for label in reversed(classes)]
    body = {
        "model": name,
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": _uri(image)}]}],
        "questions": [{"type": "choice", "instructions": "What is it?", "choices": choices}],
    }
    (answer,) = client.post("/v1/decisions", json=body).json()["answers"]
    if answer["type"] == "refusal":
        return _numbers([None] * len(classes))
    return _numbers([option["probability"] for option in answer["probabilities"]])[::-1]


def _own(client, name, image, classes):
    answer = client.post(f"/v1/models/{name}/answers", json={"images": [_text(image)]}).json()
    assert answer["classes"] == list(classes)
    return _numbers(answer["answers"][0]["probabilities"])


@pytest.mark.parametrize("dialect", [_hugging_face, _open_inference, _decisions, _own])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_classifiers(client, runs, photo, kind, dialect):
    image, classifier = photo(3), Classifier.load(runs[kind])
    _, (expected,) = classifier.predict(image)
    np.testing.assert_allclose(dialect(client, kind, image, classifier.artifact.meta["classes"]), expected, atol=1e-5)


FORMS = {
    "/models/digits": lambda body: isinstance(body["error"], str) and set(body) == {"error", "code"},
    "/v1/models/digits/answers": lambda body: isinstance(body["error"], str) and set(body) == {"error", "code"},
    "/v2/models/digits/infer": lambda body: isinstance(body["error"], str) and set(body) == {"error"},
    "/v1/embeddings": lambda body: set(body["error"]) == {"message", "type", "param", "code"},
    "/v1/decisions": lambda body: set(body["error"]) == {"message", "type", "param", "code"},
}


def _request(path: str, images: list[bytes]) -> dict:
    """What asks about images."""
    if path == "/models/digits":
        return {"content": images[0]}
    if path.startswith("/v2"):
        data = [_text(image) for image in images]
        return {"json": {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}]}}
    if path == "/v1/embeddings":
        return {"json": {"model": "digits", "input": [_uri(image) for image in images]}}
    if path == "/v1/decisions":
        message = {"role": "user", "content": [{"type": "input_image", "image_url": _uri(images[0])}]}
        question = {"type": "predicate", "instructions": "digit two"}
        return {"json": {"model": "digits", "input": [message], "questions": [question]}}
    return {"json": {"images": [_text(image) for image in images]}}


@pytest.mark.parametrize("path", FORMS)
def test_headers_say_who_answered_and_how_long(client, runs, photo, path):
    answer = client.post(path, **_request(path, [photo()]))
    assert answer.status_code == 200
    digest = Classifier.load(runs["digits"]).artifact.digest
    assert answer.headers["x-keyhole-artifact"] == f"digits@{digest[:12]}"
    assert answer.headers["x-keyhole-model"].startswith("mini:resnet#")
    spans = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert set(spans) == {"decode", "queue", "encode"} and float(spans["encode"]) > 0


@pytest.mark.parametrize("path", FORMS)
def test_errors_have_the_dialects_form(answering, client, path):
    """Whoever turns a request away: the schema, the router, the limit of a body, the key."""
    small = TestClient(make_api(answering, max_body_bytes=10))
    closed = TestClient(make_api(answering, keys=(b"\0" * 32,)))
    told = {
        422: client.post(path, content=b"{", headers={"content-type": "application/json"}),
        405: client.delete(path),
        413: small.post(path, content=b"more than ten bytes"),
        401: closed.post(path, content=b""),
    }
    for status, answer in told.items():
        assert answer.status_code == status
        assert FORMS[path](answer.json()), answer.text


class _Full:
    """An `Answering` that has no room: for all images, or for all but the first."""

    def __init__(self, answering, all_but: int) -> None:
        self.answering, self.all_but = answering, all_but
        self.about, self.offers, self.ready = answering.about, answering.offers, answering.ready

    async def ask(self, images, asks):
        full = Refusal(code="overloaded", message="too many wait; try again", retry_after_s=3)
        return [
            (await self.answering.ask([image], asks))[0] if place < self.all_but else [full] * len(asks)
            for place, image in enumerate(images)
        ]


@pytest.mark.parametrize("path", FORMS)
def test_overload_says_when_to_try_again(answering, photo, path):
    answer = TestClient(make_api(_Full(answering, 0))).post(path, **_request(path, [photo()]))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert FORMS[path](answer.json())


@pytest.mark.parametrize("path", ["/v1/models/digits/answers", "/v2/models/digits/infer", "/v1/embeddings"])
def test_images_for_which_there_is_no_room_fail_alone(answering, photo, path):
    answer = TestClient(make_api(_Full(answering, 1))).post(path, **_request(path, [photo(), photo(1)]))
    assert answer.status_code == 200 and answer.text.count("too many wait") == 1


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "HTTPS://example.org/a.png", "file:///etc/passwd"])
def test_urls_are_never_fetched(client, url):
    image = {"type": "input_image", "image_url": url}
    question = {"type": "predicate", "instructions": "digit two"}
    asked = [
        ("/models/digits", {"inputs": url}),
        ("/v1/models/digits/answers", {"images": [url]}),
        ("/v1/embeddings", {"model": "digits", "input": url}),
        (
            "/v1/decisions",
            {"model": "digits", "input": [{"role": "user", "content": [image]}], "questions": [question]},
        ),
    ]
    for path, body in asked:
        answer = client.post(path, json=body)
        assert answer.status_code == 400 and "not fetched" in answer.text


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize(
    "body",
    [
        rb'{"\ud800": 1, "model": "\udfff", "inputs": "\ud800", "input": "\ud800", "images": ["\ud800"]}',
        b"[" * 100_000,
        b'{"inputs": ' * 20_000,
        b'{"inputs": NaN, "input": 1e999, "images": [-Infinity]}',
        b'{"inputs": ' + b"9" * 10_000 + b"}",
        b"\xff\xfe{}",
        b"null",
    ],
    ids=["surrogates", "lists", "objects", "infinite", "digits", "encoding", "null"],
)
def test_hostile_json_is_refused_in_the_dialects_form(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert FORMS[path](answer.json()), answer.text
