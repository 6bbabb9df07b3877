"""`POST /v1/embeddings` as OpenAI's client, infinity's and vLLM's users send it."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient

from engine.classifier import Classifier
from engine.images import Encoded


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def _features(runs, image: bytes) -> np.ndarray:
    """The frozen model's features."""
    box = Classifier.load(runs["digits"]).box
    return box.encode(box.pixels([Encoded(image, "the image")]))[0]


@pytest.mark.parametrize("form", ["float", "base64"])
def test_openai_and_infinity(client, runs, photo, in_base64, form):
    images = [photo(seed) for seed in range(2)]
    found = client.embeddings.create(
        model="digits",
        input=[in_base64(image, uri=True) for image in images],
        encoding_format=form,
        extra_body={"modality": "image"},
    )
    assert found.model == f"digits@{Classifier.load(runs['digits']).artifact.digest[:12]}"
    for index, (image, entry) in enumerate(zip(images, found.data, strict=True)):
        vector = np.frombuffer(base64.b64decode(entry.embedding), "<f4") if form == "base64" else entry.embedding
        assert entry.index == index
        np.testing.assert_allclose(vector, _features(runs, image), atol=1e-5)


def test_the_clients_own_choice_of_form(client, runs, photo, in_base64):
    """Left alone, OpenAI's client asks for base64 and decodes it."""
    (entry,) = client.embeddings.create(model="digits", input=in_base64(photo())).data
    np.testing.assert_allclose(entry.embedding, _features(runs, photo()), atol=1e-5)


def test_vllm_messages(api, runs, photo, in_base64):
    part = {"type": "image_url", "image_url": {"url": in_base64(photo(), uri=True)}}
    body = {"model": "digits", "messages": [{"role": "user", "content": [part]}], "encoding_format": "float"}
    (entry,) = TestClient(api).post("/v1/embeddings", json=body).json()["data"]
    np.testing.assert_allclose(entry["embedding"], _features(runs, photo()), atol=1e-5)
    both = TestClient(api).post("/v1/embeddings", json={**body, "input": "x"})
    assert both.status_code == 422 and "either input or messages" in both.json()["error"]["message"]


def test_one_bad_image_fails_alone(client, photo, in_base64):
    given = [in_base64(photo(0)), in_base64(b"%PDF-1.4"), in_base64(photo(2))]
    for form in ({}, {"encoding_format": "float"}):
        found = client.embeddings.create(model="digits", input=given, **form).data
        assert [len(entry.embedding) > 0 for entry in found] == [True, False, True]
        assert found[1].error["code"] == "unsupported_type" and "known format" in found[1].error["message"]
    with pytest.raises(openai.APIStatusError, match="known format") as caught:
        client.embeddings.create(model="digits", input=given[1])
    assert caught.value.status_code == 415


def test_a_model_without_features_is_refused(client, photo, in_base64):
    with pytest.raises(openai.BadRequestError, match="does not give its features"):
        client.embeddings.create(model="labels", input=in_base64(photo()))
