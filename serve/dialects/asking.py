"""What every dialect does alike: ask about many images of which some are unreadable already, and say who answered.

Knows nothing of any dialect's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import quote

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from serve.answering import Answer, Answering, Ask, Refusal
from serve.refusals import any_answered
from serve.schema import Body

Kind = TypeVar("Kind", bound=Body)

DECLARED: dict[int | str, dict] = {
    200: {
        "headers": {
            "X-Keyhole-Artifact": {"schema": {"type": "string"}, "description": "NAME@VERSION that answered"},
            "X-Keyhole-Model": {"schema": {"type": "string"}, "description": "The frozen model and its identity"},
            "Server-Timing": {"schema": {"type": "string"}, "description": "Milliseconds to decode, wait and encode"},
        }
    }
}
"""The headers of `tell` in OpenAPI."""


async def ask_each(answering: Answering, images: Sequence[bytes | Refusal], ask: Ask) -> Sequence[Answer | Refusal]:
    """An outcome for each image, in order; those that are refused already are not asked about.

    Raises:
        Refused: There is no answer for any of them.
    """
    readable = [image for image in images if not isinstance(image, Refusal)]
    found = iter(await answering.ask(readable, [ask]) if readable else ())
    return any_answered([image if isinstance(image, Refusal) else next(found)[0] for image in images])


def tell(response: Response, outcomes: Sequence[Answer | Refusal]) -> list[Answer]:
    """Say in the headers who answered and how long it took; of several images, the longest. Gives the answers."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    if answers:
        spans = slowest(answers)
        response.headers["X-Keyhole-Artifact"] = f"{answers[0].artifact}@{answers[0].version}"
        response.headers["X-Keyhole-Model"] = quote(answers[0].model, safe="/:#?=&,@+;~")
        response.headers["Server-Timing"] = ", ".join(f"{name};dur={span * 1e3:.3f}" for name, span in spans.items())
    return answers


def slowest(answers: Sequence[Answer]) -> dict[str, float]:
    """Where the time of several answers went: seconds of the slowest, by name."""
    timings = {id(answer.timing): answer.timing for answer in answers}.values()  # images of one batch share theirs
    return {
        "decode": max(timing.decode_s for timing in timings),
        "queue": max(timing.queue_s for timing in timings),
        "encode": max(timing.encode_s for timing in timings),
    }


def parsed(kind: type[Kind], body: bytes) -> Kind:
    """A JSON body that a route reads by itself. Raises RequestValidationError as FastAPI does."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from None
