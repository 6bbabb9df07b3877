"""Hugging Face's image-classification and zero-shot-image-classification, as its `InferenceClient` sends them:
`POST /models/NAME`.

The body is the image itself, or JSON `{"inputs": base64, "parameters": {"top_k": 5}}`. With `candidate_labels` among
the parameters the classes are others than the artifact's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from serve.answering import Ask, Refusal
from serve.dialects.asking import DECLARED, parsed, tell
from serve.dialects.error_forms import responses
from serve.payload import from_base64, may_be_image, media_type
from serve.refusals import Refused, answered, refuse
from serve.routes import Asked
from serve.schema import Body, ErrorReply, Labels, Reply, Words, inlined

router = APIRouter(tags=["hugging face"])


class Parameters(Body):
    """What may be set."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Classes to return, the most probable ones; None: all."""
    function_to_apply: Literal["softmax"] | None = None
    """Scores are probabilities."""
    candidate_labels: Labels | None = None
    """Other classes: NAME's tuned context with them, or with `NAME@zero-shot` the frozen model's own template."""
    hypothesis_template: Words | None = None
    """A sentence with one `{}` for the label, with `candidate_labels` and `NAME@zero-shot`."""


class Classification(Body):
    """An image in JSON."""

    inputs: str
    """The image in base64, or as a data URI."""
    parameters: Parameters | None = None


class Label(Reply):
    """A class and its probability; null where the model tells labels alone."""

    label: str
    score: float | None


BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": inlined(Classification)},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post(
    "/models/{name}", operation_id="classify", responses={**responses(ErrorReply), **DECLARED}, openapi_extra=BODY
)
async def classify(
    name: Annotated[str, Path(max_length=300)], request: Request, response: Response, answering: Asked
) -> list[Label]:
    """Classify one image. NAME may be `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    image, given = await _read(request)
    ask = Ask(artifact=name, labels=given.candidate_labels, template=given.hypothesis_template)
    answer = answered((await answering.ask([image], [ask]))[0][0])
    tell(response, [answer])
    return [Label(label=label, score=score) for label, score in answer.best(given.top_k)]


async def _read(request: Request) -> tuple[bytes, Parameters]:
    """The image and the parameters. Raises Refused or RequestValidationError where the body holds none."""
    body, kind = await request.body(), media_type(request.headers.get("content-type"))
    if kind == "application/json" or (not kind and body[:1] == b"{"):
        given = parsed(Classification, body)
        image = from_base64(given.inputs)
        if isinstance(image, Refusal):
            raise Refused(image)
        return image, given.parameters or Parameters()
    if not may_be_image(kind):
        raise refuse("unsupported_type", f"the body is {kind[:100]!r}; send an image, or JSON with the image in base64")
    return body, Parameters()
