"""How an error is written in each dialect, by the path that was asked.

Knows nothing of why a request fails: codes and sentences come from refusals.py and limits.py.
"""

from __future__ import annotations

import re

from pydantic import BaseModel

from serve.schema import ErrorReply, OpenAIError, OpenAIErrorReply, ProtocolError

OPENAI = re.compile(r"/v1/(decisions|embeddings|models(/[^/]*)?)")
"""Paths in OpenAI's form. `/v1/models/NAME/answers` is our own."""
TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}
"""status -> OpenAI's type of an error; all others are `invalid_request_error`."""
STATUSES = {
    400: "What came cannot be answered",
    401: "No API key, or an unknown one",
    404: "No such model",
    413: "The body is too large",
    415: "Not an image of a known format, or not a known type of body",
    422: "The request does not fit its schema",
    429: "Too many requests wait; Retry-After says when to try again",
    503: "Nobody answers now; Retry-After says when to try again",
}


def error_body(path: str, status: int, code: str, message: str) -> BaseModel:
    """The error in the form of the dialect to which a path belongs.

    >>> error_body("/v2/models/pets", 404, "unknown_model", "no model 'pets' here").model_dump()
    {'error': "no model 'pets' here"}
    """
    message = message.encode("utf-8", "replace").decode()  # lone surrogates of a client cannot be sent back
    if path == "/v2" or path.startswith("/v2/"):
        return ProtocolError(error=message)
    if OPENAI.fullmatch(path):
        kind = TYPES.get(status, "invalid_request_error")
        return OpenAIErrorReply(error=OpenAIError(message=message, type=kind, code=code))
    return ErrorReply(error=message, code=code)


def responses(form: type[BaseModel], *statuses: int) -> dict[int | str, dict]:
    """What a route declares in OpenAPI: these statuses, or all."""
    return {status: {"model": form, "description": STATUSES[status]} for status in statuses or STATUSES}
