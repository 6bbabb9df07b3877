"""Over HTTP: answers, refusals and the shelf, in this process."""

from __future__ import annotations

import base64

import pytest

from engine.classifier import Classifier


@pytest.fixture
def client(serving, runs):
    return serving(pets=runs["digits"], shapes=runs["context-per-class"])


def test_hugging_face_bytes_and_json(client, runs, photo):
    image = photo()
    labels, probabilities = Classifier.load(runs["digits"]).predict(image)
    whole = client.post("/models/pets", content=image)
    assert whole.status_code == 200 and whole.json()[0]["label"] == labels[0]
    assert [entry["score"] for entry in whole.json()] == pytest.approx(sorted(probabilities[0])[::-1], abs=1e-5)
    body = {"inputs": base64.b64encode(image).decode(), "parameters": {"top_k": 2}}
    assert client.post("/models/pets", json=body).json() == whole.json()[:2]


def test_versions_and_zero_shot(client, photo):
    image, state = photo(), {offer["name"]: offer for offer in client.get("/v1/artifacts").json()["artifacts"]}
    told = [
        client.post(f"/models/pets{which}", content=image) for which in ("", f"@{state['pets']['live']}", "@latest")
    ]
    assert [answer.json() for answer in told] == [told[0].json()] * 3
    bare = client.post("/models/shapes@zero-shot", content=image)
    assert bare.status_code == 200 and bare.json() != client.post("/models/shapes", content=image).json()
    assert client.post("/models/pets@0000", content=image).status_code == 404


@pytest.mark.parametrize(
    ("path", "send", "status"),
    [
        ("/models/nobody", {"content": b"\x89PNG\r\n\x1a\n"}, 404),
        ("/models/pets", {"content": b""}, 400),
        ("/models/pets", {"content": b"\x89PNG\r\n\x1a\n and then nothing"}, 400),
        ("/models/pets", {"content": b"%PDF-1.4"}, 415),
        ("/models/pets", {"content": b"\x89PNG\r\n\x1a\n", "headers": {"content-type": "text/plain"}}, 415),
        ("/models/pets", {"json": {"inputs": "!"}}, 400),
        ("/models/pets", {"json": {"inputs": "http://169.254.169.254/"}}, 400),
        ("/models/pets", {"json": {"inputs": "", "more": 1}}, 422),
        ("/models/pets", {"json": {"inputs": "", "parameters": {"top_k": 0}}}, 422),
        ("/models/" + "x" * 301, {"content": b""}, 422),
        ("/nothing", {"content": b""}, 404),
    ],
)
def test_refusals_say_why(client, path, send, status):
    answer = client.post(path, **send)
    assert answer.status_code == status and answer.json()["error"] and set(answer.json()) == {"error", "code"}


def test_health_and_models(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["pets", "shapes"]
