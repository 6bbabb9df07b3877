"""What is turned away before a route sees it: requests without a key, and bodies that are too large.

Two plain ASGI layers. Bodies are counted as they come, so that a length that is missing or false does not help.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from serve.dialects.error_forms import error_body
from serve.keys import allowed
from serve.page import FILES

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Layer = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/v2/health/live", "/v2/health/ready", *FILES})
"""Paths that need no key: a cluster's probes have none, and the page asks for one."""


class KeyGate:
    """Lets requests through that bring a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

    def __init__(self, app: Layer, hashes: tuple[bytes, ...]) -> None:
        self._app, self._hashes = app, hashes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            headers = Headers(scope=scope)
            kind, _, key = headers.get("authorization", "").partition(" ")
            key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            if not allowed(key.encode("latin-1", "replace"), self._hashes):
                message = "send an API key: Authorization: Bearer KEY, or X-API-Key: KEY"
                refused = _error(scope, 401, "unauthorized", message)
                refused.headers["WWW-Authenticate"] = "Bearer"
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _TooLarge(Exception):
    pass


class BodyLimit:
    """Answers 413 as soon as a body is longer than allowed, whether it says so at first or turns out to be."""

    def __init__(self, app: Layer, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told, seen, begun = Headers(scope=scope).get("content-length", ""), 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                raise _TooLarge
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if seen > self._most and not begun:
                raise _TooLarge  # a route that caught it while it read has another answer for it
            begun = True
            await send(message)

        try:
            if told.isdecimal() and int(told) > self._most:
                raise _TooLarge
            await self._app(scope, counted, noted)
        except _TooLarge:
            if begun:
                raise
            message = f"the body is longer than {self._most} bytes; send fewer or smaller images"
            await _error(scope, 413, "too_large", message)(scope, receive, send)


def _error(scope: Scope, status: int, code: str, message: str) -> JSONResponse:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    # The rest of a body that is not read would be taken for the next request.
    return JSONResponse(error_body(path, status, code, message).model_dump(), status, {"Connection": "close"})
