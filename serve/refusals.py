"""Refusals over HTTP: which status each has, and how an application writes errors, each in its dialect's form.

Nothing that is not written here reaches a client: an unexpected error is logged, and answered without its text.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serve.answering import Answer, Code, Refusal
from serve.dialects.error_forms import error_body

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


def any_answered(outcomes: Sequence[Answer | Refusal]) -> Sequence[Answer | Refusal]:
    """The outcomes of a batch, as they are. Raises Refused where there is no answer among them."""
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if len(refusals) == len(outcomes):
        raise Refused(max(refusals, key=lambda refusal: refusal.retry_after_s is not None))  # the first to try again
    return outcomes


def refuse(code: Code, message: str) -> Refused:
    """What a route raises to refuse a request."""
    return Refused(Refusal(code=code, message=message))


def headers(refusal: Refusal) -> dict[str, str]:
    """Retry-After, where the refusal says when."""
    return {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}


def error_response(request: Request, refusal: Refusal) -> JSONResponse:
    """The error in the form of the dialect that was asked."""
    return _written(request, STATUS[refusal.code], refusal.code, refusal.message, headers(refusal))


def install(api: FastAPI) -> None:
    """Answer every error of this application in its dialect's form."""

    @api.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return error_response(request, error.refusal)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part)[:50] for part in first["loc"][:6])
        return _written(request, 422, "invalid", f"{where}: {first['msg'][:200]}")

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return _written(request, error.status_code, "http", str(error.detail), error.headers)

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        request_id = request.scope.get(REQUEST_ID, "")
        logger.error("request %s failed", request_id, exc_info=error)
        message = "the server failed on this request; try again"
        answer = error_response(request, Refusal(code="unavailable", message=message, retry_after_s=1))
        answer.headers["X-Request-ID"] = request_id  # the layer that sets it elsewhere has been left already
        return answer


def _written(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    return JSONResponse(error_body(path, status, code, message).model_dump(), status, headers)
