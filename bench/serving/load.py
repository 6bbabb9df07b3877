"""Clients for a measurement: closed loops, and arrivals at random times whatever the server does.

They write prepared requests to kept connections and read no more of an answer than its length, so that they take
little of the machine on which the server runs.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.errors import BoxError


@dataclass
class Heard:
    """What clients heard."""

    seconds: list[float] = field(default_factory=list)
    """Of each answer with code 200, in the order in which they came."""
    codes: Counter[int] = field(default_factory=Counter)
    """0: the connection broke."""
    wall_s: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Requests a second, percentiles in milliseconds, and the codes other than 200."""
        percentiles = np.percentile(self.seconds, (50, 95, 99)) * 1e3 if self.seconds else [float("nan")] * 3
        return {
            "requests": self.codes.total(),
            "requests_a_second": len(self.seconds) / self.wall_s,
            **{f"p{rank}_ms": float(found) for rank, found in zip((50, 95, 99), percentiles, strict=True)},
            "failed": {str(code): count for code, count in sorted(self.codes.items()) if code != 200},
        }


def written(path: str, body: bytes, kind: str) -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection:
    """One kept connection to 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request and read its answer; its status, 0 where the connection broke."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, _, rest = head.partition(b"content-length:")
            if not rest:
                raise BoxError("the server's answer states no length")
            await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
            if b"connection: close" in head:
                self.close()
            return int(head.split(b" ", 2)[1])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def closed_loop(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Heard:
    """Clients that each ask again as soon as they are answered.

    Args:
        port: Of the server.
        requests: What they ask, in turn.
        clients: How many.
        seconds: When no new request is sent any more. Each client sends at least one.
    """
    heard, until, numbers = Heard(), time.perf_counter() + seconds, iter(range(10**9))

    async def client() -> None:
        connection = Connection(port)
        while True:
            await _timed(heard, connection, requests[next(numbers) % len(requests)], time.perf_counter())
            if time.perf_counter() >= until:
                break
        connection.close()

    return _conducted(heard, lambda: [client() for _ in range(clients)])


def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int) -> Heard:
    """Poisson arrivals. A latency counts from the arrival, also where the client was late to send it.

    Args:
        port: Of the server.
        requests: What is asked, in turn.
        rate: Arrivals a second.
        seconds: How long they go on arriving.
        seed: Draws their times.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds)))
    heard, free = Heard(), deque[Connection]()

    async def arrivals() -> None:
        start, asked = time.perf_counter(), []

        async def one(number: int, at: float) -> None:
            connection = free.pop() if free else Connection(port)
            await _timed(heard, connection, requests[number % len(requests)], at)
            free.append(connection)

        for number, at in enumerate(start + np.cumsum(gaps)):
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            asked.append(asyncio.create_task(one(number, at)))
        await asyncio.gather(*asked)
        for connection in free:
            connection.close()

    return _conducted(heard, lambda: [arrivals()])


async def _timed(heard: Heard, connection: Connection, request: bytes, since: float) -> None:
    code = await connection.ask(request)
    heard.codes[code] += 1
    if code == 200:
        heard.seconds.append(time.perf_counter() - since)


def _conducted(heard: Heard, clients: Callable[[], list[Any]]) -> Heard:
    """Run the clients to their end."""

    async def everybody() -> None:
        await asyncio.gather(*clients())

    start = time.perf_counter()
    asyncio.run(everybody())
    heard.wall_s = time.perf_counter() - start
    return heard


def middle(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the turns' numbers; what failed is added up."""
    found = {name: statistics.median(turn[name] for turn in turns) for name in turns[0] if name != "failed"}
    return found | {"failed": dict(sum((Counter(turn["failed"]) for turn in turns), Counter()))}
