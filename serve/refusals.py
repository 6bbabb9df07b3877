"""Refusals over HTTP: which status each has, and how an error is written where a dialect has no form of its own.

Nothing that is not written here reaches a client: an unexpected error is logged, and answered without its text.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.answering import Answer, Code, Refusal
from serve.schema import ErrorReply

logger = logging.getLogger(__name__)

STATUS: dict[Code, int] = {
    "bad_image": 400,
    "bad_request": 400,
    "unknown_model": 404,
    "too_large": 413,
    "unsupported_type": 415,
    "overloaded": 429,
    "unavailable": 503,
}
REQUEST_ID = "keyhole.request_id"
"""Where a request's id stands in its ASGI scope."""
RESPONSES: dict[int | str, dict[str, type]] = {
    status: {"model": ErrorReply} for status in sorted({*STATUS.values(), 401, 422})
}
"""What a route declares in OpenAPI."""


class Refused(Exception):
    """Ends a request whose whole answer is a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def answered(outcome: Answer | Refusal) -> Answer:
    """The answer. Raises Refused where there is none."""
    if isinstance(outcome, Refusal):
        raise Refused(outcome)
    return outcome


def refuse(code: Code, message: str) -> Refused:
    """What a route raises to refuse a request."""
    return Refused(Refusal(code=code, message=message))


def headers(refusal: Refusal) -> dict[str, str]:
    """Retry-After, where the refusal says when."""
    return {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}


def error_response(refusal: Refusal) -> JSONResponse:
    """The error as `ErrorReply`."""
    body = ErrorReply(error=refusal.message, code=refusal.code)
    return JSONResponse(body.model_dump(), STATUS[refusal.code], headers(refusal))


def install(api: FastAPI) -> None:
    """Answer every error of this application as `ErrorReply`."""

    @api.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return error_response(error.refusal)

    @api.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part)[:50] for part in first["loc"][:6])
        body = ErrorReply(error=f"{where}: {first['msg'][:200]}", code="invalid")
        return JSONResponse(body.model_dump(), 422)

    @api.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        body = ErrorReply(error=str(error.detail), code="http")
        return JSONResponse(body.model_dump(), error.status_code, error.headers)

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope.get(REQUEST_ID, "")
        logger.error("request %s failed", request_id, exc_info=error)
        answer = error_response(
            Refusal(code="unavailable", message="the server failed on this request; try again", retry_after_s=1)
        )
        answer.headers["X-Request-ID"] = request_id  # the layer that sets it elsewhere has been left already
        return answer
