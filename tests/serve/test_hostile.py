"""Thousands of requests, a third of them hostile: those are refused in plain words, the others answered as ever.

KEYHOLE_HOSTILE sets how many; 10,000 take about a minute.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import ctypes
import gc
import hashlib
import json
import logging
import os
import re
from pathlib import Path

import httpx2
import numpy as np
import pytest
from hostile import HUGE, Attack, attack

from engine.classifier import Classifier
from serve.routes import make_api
from serve.telemetry import ACCESS

REQUESTS = int(os.environ.get("KEYHOLE_HOSTILE", "10000"))
CLIENTS = 8
KEY = "open sesame"
INTERNALS = re.compile(
    r"""Traceback|File "|\.py\b|/(?:tmp|home|usr|work|var|opt)/|site-packages|0x[0-9a-f]{6,}|<\w+[ .]|object at 0x"""
    r"""|\b[A-Z]\w+(?:Error|Exception)\b|pydantic|starlette|\bPIL\b"""
)
SETTLED = 10_000
"""Shorter runs end before the allocators of all threads have met every kind of image, and say nothing of memory."""
GROWTH_BYTES = 6 * 2**20
"""Memory that the second half may add."""
GROWTH_OBJECTS = 0.2
"""Python objects that a request of the second half may leave behind, on average."""


class Lines(logging.Filter):
    """Looks at every line of the access log and lets none through: pytest would keep them all."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: collections.Counter[int] = collections.Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        assert "\n" not in text and len(text) < 1500 and KEY not in text
        self.statuses[json.loads(text)["status"]] += 1
        return False


@pytest.fixture
def lines():
    looking, logger = Lines(), logging.getLogger(ACCESS)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(looking)
    yield looking
    logger.removeFilter(looking)
    logger.setLevel(before)


def held() -> tuple[int, int]:
    """Python objects and bytes that this process holds; memory that is free is given back first, where that goes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE")


def wrong(asked: Attack, answer: httpx2.Response) -> str | None:
    """Why it was not turned away as it should be; None: it was."""
    what = f"{asked.kind} {asked.method} {asked.path[:80]} -> {answer.status_code} {answer.text[:300]}"
    if answer.status_code not in asked.statuses:
        return f"status: {what}"
    if INTERNALS.search(answer.text):
        return f"internals: {what}"
    message = answer.json()["error"]
    message = message if isinstance(message, str) else message["message"]
    return None if 5 < len(message) < 700 and message.isprintable() else f"words: {what}"


@pytest.mark.slow
def test_a_third_of_the_requests_is_hostile(serving, runs, photo, lines):
    kinds = {"pets": "digits", "shapes": "context-per-class", "choice": "top-k", "marks": "labels"}
    answering = serving(**{name: runs[kind] for name, kind in kinds.items()}).answering
    api = make_api(answering, max_body_bytes=HUGE - 1, keys=(hashlib.sha256(KEY.encode()).digest(),))
    routes = [path for path, verbs in api.openapi()["paths"].items() if "post" in verbs]
    photos = [photo(seed, format) for seed in range(4) for format in ("PNG", "JPEG", "WEBP")]
    truth = {}
    for name, kind in kinds.items():
        labels, tables = Classifier.load(runs[kind]).predict(photos)
        truth[name] = [(label, np.sort(table)[::-1]) for label, table in zip(labels, tables, strict=True)]
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    memory: dict[int, tuple[int, int]] = {}
    mistakes: list[str] = []

    async def good(client: httpx2.AsyncClient, number: int) -> None:
        name, which = list(kinds)[number % len(kinds)], number % len(photos)
        sent = {"content": photos[which]}
        if number % 2:
            sent = {"json": {"inputs": base64.b64encode(photos[which]).decode()}}
        answer = await client.post(f"/models/{name}", **sent)
        assert answer.status_code == 200, answer.text
        label, table = truth[name][which]
        assert answer.json()[0]["label"] == label
        scores = [np.nan if row["score"] is None else row["score"] for row in answer.json()]
        np.testing.assert_allclose(scores, table, atol=1e-5)
        seen["good", 200] += 1

    async def bad(client: httpx2.AsyncClient, number: int) -> None:
        rng = np.random.default_rng((12, number))
        asked = attack(rng, routes[rng.integers(len(routes))], list(kinds)[rng.integers(len(kinds))])
        content = asked.content if isinstance(asked.content, bytes) else asked.content()
        headers = {name: value.encode("latin-1") for name, value in asked.headers.items()}
        answer = await client.request(asked.method, asked.path, content=content, headers=headers)
        if found := wrong(asked, answer):
            mistakes.append(found)
        seen[asked.kind, answer.status_code] += 1

    async def main() -> None:
        numbers = iter(range(REQUESTS))
        transport = httpx2.ASGITransport(api, raise_app_exceptions=False)

        async def send(client: httpx2.AsyncClient) -> None:
            for number in numbers:
                await (bad if number % 3 == 0 else good)(client, number)
                if number % (REQUESTS // 10) == 0:
                    memory[number] = held()

        async with httpx2.AsyncClient(
            transport=transport, base_url="http://test", headers={"X-API-Key": KEY}
        ) as client:
            await asyncio.gather(*(send(client) for _ in range(CLIENTS)))

    asyncio.run(main())
    for (kind, status), count in sorted(seen.items()):
        print(f"{kind:14} {status} {count:6}")
    objects, levels = (np.array(column) for column in zip(*(memory[number] for number in sorted(memory)), strict=True))
    print("memory, MB:", *(levels >> 20), "objects:", *objects)
    assert not mistakes, "\n".join(mistakes[:20])
    assert sum(lines.statuses.values()) == sum(seen.values()) == REQUESTS, "every request has its line"
    if REQUESTS < SETTLED:
        return
    half = len(levels) // 2
    assert min(levels[-2:]) - max(levels[half - 1 : half + 1]) < GROWTH_BYTES
    assert min(objects[-2:]) - max(objects[half - 1 : half + 1]) < GROWTH_OBJECTS * REQUESTS / 2
