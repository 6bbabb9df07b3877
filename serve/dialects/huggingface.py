"""Hugging Face's image-classification, as its `InferenceClient` sends it: `POST /models/NAME`.

The body is the image itself, or JSON `{"inputs": base64, "parameters": {"top_k": 5}}`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field, ValidationError

from serve.answering import Ask, Refusal
from serve.payload import from_base64
from serve.refusals import RESPONSES, Refused, answered, refuse
from serve.routes import Asked
from serve.schema import Body, Reply

router = APIRouter(tags=["hugging face"])


class Parameters(Body):
    """What may be set."""

    top_k: Annotated[int, Field(ge=1)] | None = None
    """Classes to return, the most probable ones; None: all."""


class Classification(Body):
    """An image in JSON."""

    inputs: str
    """The image in base64, or as a data URI."""
    parameters: Parameters | None = None


class Label(Reply):
    """A class and its probability; null where the model tells labels alone."""

    label: str
    score: float | None


UNTYPED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of a body that say nothing: Hugging Face's client sends none, curl's --data-binary the last."""
SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Classification.model_json_schema()},
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("/models/{name}", operation_id="classify", responses=RESPONSES, openapi_extra=SCHEMA)
async def classify(name: Annotated[str, Path(max_length=300)], request: Request, answering: Asked) -> list[Label]:
    """Classify one image. NAME may be `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    image, parameters = await _read(request)
    answer = answered((await answering.ask([image], [Ask(artifact=name)]))[0][0])
    return [
        Label(label=label, score=score if score == score else None) for label, score in answer.best(parameters.top_k)
    ]


async def _read(request: Request) -> tuple[bytes, Parameters]:
    """The image and the parameters. Raises Refused where the body holds none."""
    body, kind = await request.body(), request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json" or (not kind and body[:1] == b"{"):
        try:
            given = Classification.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part)[:50] for part in first["loc"]) or "the body"
            raise refuse("bad_request", f"{where}: {first['msg'][:200]}") from None
        image = from_base64(given.inputs)
        if isinstance(image, Refusal):
            raise Refused(image)
        return image, given.parameters or Parameters()
    if kind not in UNTYPED and not kind.startswith("image/"):
        raise refuse("unsupported_type", f"the body is {kind[:100]!r}; send an image, or JSON with the image in base64")
    return body, Parameters()
