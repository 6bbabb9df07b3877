"""Clients that ask one thing again and again over connections that they keep, and what became of their requests."""

from __future__ import annotations

import collections
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

CLIENTS = 8
RESET = (http.client.RemoteDisconnected, ConnectionError)
"""The connection ended before the first byte of an answer."""


@dataclass(slots=True)
class Tally:
    """What became of requests."""

    answered: collections.Counter[str] = field(default_factory=collections.Counter)
    """version -> right answers."""
    resets: list[str] = field(default_factory=list)
    """Requests that were sent once more since their connection ended without a word."""
    errors: list[str] = field(default_factory=list)
    """Requests that were sent once more since the answer was an error of the server: 5xx."""
    lost: list[str] = field(default_factory=list)
    """What came instead of a right answer, at last."""
    latest: str = ""
    """Version of the latest answer."""
    slowest_s: float = 0.0

    @property
    def requests(self) -> int:
        return sum(self.answered.values()) + len(self.lost)

    def __str__(self) -> str:
        again = f"{len(self.resets)} reset, {len(self.errors)} answered 5xx"
        return f"{self.requests} requests; sent again: {again}; {len(self.lost)} lost; slowest {self.slowest_s:.1f} s"


@contextmanager
def load(port: int, path: str, image: bytes, versions: Mapping[str, Mapping[str, float]]) -> Iterator[Tally]:
    """Eight clients, for as long as the block lasts.

    Args:
        port: Of loopback.
        path: Of Hugging Face's classification.
        image: What they send.
        versions: version -> class -> probability. An answer must be one of them, to 1e-5.
    """
    tally, ended = Tally(), threading.Event()
    clients = [
        threading.Thread(target=_client, args=(port, path, image, versions, tally, ended)) for _ in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    try:
        yield tally
    finally:
        ended.set()
        for client in clients:
            client.join(90)


def _client(port: int, path: str, image: bytes, versions: Mapping, tally: Tally, ended: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not ended.is_set():
        begun = time.monotonic()
        for first in (True, False):
            try:
                connection.request("POST", path, image, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
            except RESET as error:
                connection.close()
                status, body = 0, repr(error).encode()
            if status and status < 500:
                break
            if first:
                (tally.errors if status else tally.resets).append(f"{status} {body[:200]!r}")
        version = _version(body, versions) if status == 200 else None
        if version is None:
            tally.lost.append(f"{status} {body[:200]!r}")
        else:
            tally.answered[version] += 1
            tally.latest = version
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - begun)


def _version(body: bytes, versions: Mapping[str, Mapping[str, float]]) -> str | None:
    """Whose answer this is."""
    found = {row["label"]: row["score"] for row in json.loads(body)}
    for version, expected in versions.items():
        if found.keys() == expected.keys():
            scores = [found[label] for label in expected]
            if np.allclose(scores, [*expected.values()], rtol=0, atol=1e-5):
                return version
    return None
