"""What is turned away before a route sees it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac

import httpx2
import pytest
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse

from engine.errors import RecipeError
from serve.app import local
from serve.keys import VARIABLE, allowed, load_keys
from serve.limits import BodyLimit
from serve.routes import make_api
from serve.settings import ServeSettings


@pytest.fixture
def guarded(serving, runs, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{hashlib.sha256(b'open sesame').hexdigest()}  # the shop\n\n")
    answering = serving(shapes=runs["context-per-class"]).answering
    return TestClient(make_api(answering, max_body_bytes=1000, keys=load_keys(file)))


def test_only_who_has_a_key_may_ask(guarded, photo):
    for headers in (
        {},
        {"Authorization": "Bearer shut"},
        {"X-API-Key": b"\xfc"},
        {"Authorization": "Basic open sesame"},
    ):
        answer = guarded.post("/models/shapes", content=photo(), headers=headers)
        assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": "Bearer open sesame"}, {"X-API-Key": "open sesame"}):
        assert guarded.post("/models/shapes", content=photo(), headers=headers).status_code == 200
    assert guarded.get("/v2/health/ready").status_code == 200
    assert guarded.get("/v1/artifacts").status_code == 401


def test_a_long_body_is_refused_plain_and_in_chunks(guarded):
    def chunks():
        for _ in range(30):
            yield b"\x89PNG" * 10

    headers = {"X-API-Key": "open sesame"}
    for body in (b"x" * 1001, chunks()):
        answer = guarded.post("/models/shapes", content=body, headers=headers)
        assert answer.status_code == 413 and answer.json()["code"] == "too_large"
    assert guarded.post("/models/shapes", content=b"x" * 1000, headers=headers).status_code == 415


def test_a_long_body_is_413_though_a_route_catches_whatever_reading_it_raises():
    """As FastAPI's own reading of JSON does: it answers 400 to any exception."""

    async def route(scope, receive, send):
        try:
            while (await receive()).get("more_body"):
                pass
            status = 200
        except Exception:
            status = 400
        await JSONResponse({}, status)(scope, receive, send)

    def chunks():
        yield from [b"x" * 60] * 2

    client = TestClient(BodyLimit(route, most=100))
    assert client.post("/", content=chunks()).status_code == 413
    assert client.post("/", content=b"x" * 100).status_code == 200


def test_a_burst_is_answered_or_told_when_to_come_again(runs, photo):
    made = local(ServeSettings(artifacts={"digits": [str(runs["digits"])]}, queue=3))
    transport = httpx2.ASGITransport(make_api(made))

    async def burst() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/models/digits", content=photo()) for _ in range(20)))

    try:
        answers, later = asyncio.run(burst()), asyncio.run(burst())
    finally:
        made.close()
    for told in (answers, later):
        refused = [answer for answer in told if answer.status_code == 429]
        assert len(refused) == 17 and all(answer.headers["Retry-After"] == "1" for answer in refused)
        assert sum(answer.status_code == 200 for answer in told) == 3


def test_every_key_is_compared_whole_whichever_fits(monkeypatch):
    compared = []
    honest = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or honest(a, b))
    hashes = tuple(hashlib.sha256(key).digest() for key in (b"a", b"b", b"c"))
    for key, said in ((b"a", True), (b"c", True), (b"d", False), (b"", False)):
        compared.clear()
        assert allowed(key, hashes) is said and [other for _, other in compared] == list(hashes)


@pytest.mark.parametrize("text", ["", "# nobody\n", "open sesame\n", "ab" * 31])
def test_a_file_without_hashes_is_refused(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(RecipeError):
        load_keys(tmp_path / "keys")


def test_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, "one, two,")
    assert load_keys(None) == tuple(hashlib.sha256(key).digest() for key in (b"one", b"two"))
