"""What is recorded of every request: metrics, one line of access log, and the ids by which it is found again.

An ASGI layer around everything else, and an `Answering` around the one that answers; routes need no calls.
Images, keys, addresses and whatever else a client may write freely are not recorded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from starlette.datastructures import Headers, MutableHeaders

from serve import metrics, refusals
from serve.answering import ZERO_SHOT, Answer, Answering, Ask, Refusal
from serve.limits import Layer, Receive, Scope, Send
from serve.schema import Offer, Version

ACCESS = "keyhole.access"
"""The logger of one JSON line a request, at level INFO."""
NAMED = 16
"""Artifacts that a line names, at most."""
HUNG_UP = 499
"""The code of a request whose client went away before the answer, as nginx writes it."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

logger = logging.getLogger(ACCESS)


@dataclass(slots=True)
class Trail:
    """What is known of the request that is being answered."""

    request_id: str
    """What the client calls it, where that is 1 to 100 of A-Z a-z 0-9 . _ -; else one of our own."""
    trace_id: str
    """Of the trace that the client's `traceparent` names (W3C Trace Context), else of a new one."""
    traceparent: str
    """The trace with a span of our own: for the answer, and for whoever is asked next."""
    status: int = 0
    error: str | None = None
    """The type of an unexpected exception."""
    names: set[str] = field(default_factory=set)
    """Artifacts on the shelf that it is about."""
    versions: set[str] = field(default_factory=set)
    """`NAME@VERSION` of those that answered."""
    images: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Images times questions without an answer, by why."""
    bytes_in: int = 0
    bytes_out: int = 0

    @classmethod
    def of(cls, headers: Headers) -> Trail:
        """The beginning of one. Ids that are malformed are replaced."""
        request_id, parent = headers.get("x-request-id", ""), TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        trace_id, flags = parent.groups() if parent else (secrets.token_hex(16), "00")
        return cls(
            request_id=request_id if REQUEST_ID.fullmatch(request_id) else secrets.token_hex(16),
            trace_id=trace_id,
            traceparent=f"00-{trace_id}-{secrets.token_hex(8)}-{flags}",
        )


_trail: ContextVar[Trail | None] = ContextVar("trail", default=None)


def trail() -> Trail | None:
    """Of the request that is being answered here; None outside of one."""
    return _trail.get()


def log_to_stderr() -> None:
    """Write the access log to stderr, for a process that has no handlers of its own: a replica of Ray Serve."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Access:
    """The outermost layer: gives a request its ids, counts what passes, and writes its line when it ends."""

    def __init__(self, app: Layer) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found, start = Trail.of(Headers(scope=scope)), time.perf_counter()
        scope[refusals.REQUEST_ID] = found.request_id
        # Ray Serve gives every request an id where it has none, and writes it into the answer itself.
        told = metrics.in_ray_serve() and Headers(scope=scope).get("x-request-id") == found.request_id

        async def counted() -> MutableMapping[str, Any]:
            message = await receive()
            found.bytes_in += len(message.get("body", b""))
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                found.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["traceparent"] = found.traceparent
                if not told:
                    headers["X-Request-ID"] = found.request_id
            found.bytes_out += len(message.get("body", b""))
            await send(message)

        token = _trail.set(found)
        try:
            await self._app(scope, counted, noted)
        except asyncio.CancelledError:
            found.status = found.status or HUNG_UP
            raise
        except Exception as error:
            found.status, found.error = found.status or 503, type(error).__name__
            raise
        finally:
            _trail.reset(token)
            _end(found, scope, time.perf_counter() - start)


def _end(found: Trail, scope: Scope, seconds: float) -> None:
    """Count a request and write its line."""
    route, code = getattr(scope.get("route"), "path", "none"), str(found.status)
    about = "several" if len(found.names) > 1 else next(map(metrics.ARTIFACTS.label, found.names), "none")
    metrics.REQUESTS.record(route=route, artifact=about, code=code)
    metrics.SECONDS.record(seconds, route=route, code=code)
    if found.bytes_in:
        metrics.BODY_BYTES.record(found.bytes_in)
    if not logger.isEnabledFor(logging.INFO):
        return
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": found.request_id,
        "trace_id": found.trace_id,
        "method": scope["method"] if scope["method"] in METHODS else metrics.OTHER,
        "route": route,
        "status": found.status,
        "seconds": round(seconds, 6),
        "artifacts": sorted(found.versions)[:NAMED],
        "images": found.images,
        "bytes_in": found.bytes_in,
        "bytes_out": found.bytes_out,
    }
    more = {"refusals": dict(found.refusals), "error": found.error}
    logger.info(json.dumps({**line, **{name: value for name, value in more.items() if value}}))


class Observed(Answering):
    """An `Answering` that records what another one answers."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """As `Answering`."""
        rows = await self._answering.ask(images, asks)
        found = _trail.get()
        if found is not None:
            found.images += len(images)
        for column, ask in enumerate(asks):
            _note([row[column] for row in rows], ask, found)
        return rows

    async def about(self, artifact: str) -> Version | Refusal:
        """As `Answering`."""
        return await self._answering.about(artifact)

    async def offers(self) -> list[Offer]:
        """As `Answering`."""
        return await self._answering.offers()

    async def ready(self, artifact: str | None = None) -> Refusal | None:
        """As `Answering`."""
        return await self._answering.ready(artifact)


def _note(outcomes: Sequence[Answer | Refusal], ask: Ask, found: Trail | None) -> None:
    """Record the outcomes of one ask, an image each."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    codes = Counter(outcome.code for outcome in outcomes if isinstance(outcome, Refusal))
    name, _, which = ask.artifact.partition("@")
    known = bool(outcomes) and "unknown_model" not in codes  # what nothing is called may be anything
    artifact = metrics.ARTIFACTS.label(name) if known else "none"
    if found is not None:
        found.refusals.update(codes)
        found.names.update([name] if known else [])
        found.versions.update(f"{answer.artifact}@{answer.version}" for answer in answers)
    for outcome, count in [*codes.items(), *([("answered", len(answers))] if answers else [])]:
        metrics.IMAGES.record(count, artifact=artifact, outcome=outcome)
    if not answers or ask.labels is not None or which == ZERO_SHOT:  # these say nothing of the tuned prompt
        return
    for label, count in Counter(answer.label for answer in answers).items():
        kept = artifact != metrics.OTHER and metrics.CLASSES.keeps((artifact, label))
        metrics.LABELS.record(count, artifact=artifact, label=label if kept else metrics.OTHER)
    for value in metrics.entropies(np.stack([answer.probabilities for answer in answers])):
        if value == value:  # a box that gives labels alone has no probabilities
            metrics.ENTROPY.record(float(value), artifact=artifact)
