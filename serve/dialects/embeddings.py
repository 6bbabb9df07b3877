"""`POST /v1/embeddings` for images: the frozen model's features in OpenAI's form.

Images come as infinity takes them (`input`: data URIs or base64, `modality: image`) or, one a request, as vLLM takes
them (`messages` with an `image_url`). `model` names an artifact: its features are those of its frozen model, with its
pixel frame where it has one.

OpenAI's form has no place for an image that fails alone. Its entry stays at its index, with an empty `embedding` and
an `error` in OpenAI's form. Where no image is answered, the request is refused.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from pydantic import Field, model_validator

from serve.answering import Answer, Ask, Refusal
from serve.dialects.asking import DECLARED, ask_each, tell
from serve.dialects.error_forms import responses
from serve.payload import from_base64
from serve.refusals import refuse
from serve.routes import Asked
from serve.schema import MOST_IMAGES, Body, OpenAIError, OpenAIErrorReply, Reply

router = APIRouter(tags=["openai"])


class ImageUrl(Body):
    """An image in vLLM's form."""

    url: str
    """A data URI; URLs are not fetched."""
    detail: Any = None
    """Has no effect."""


class ImagePart(Body):
    """A part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Body):
    """The one message, in vLLM's form."""

    role: Literal["user"]
    content: Annotated[tuple[ImagePart, ...], Field(min_length=1, max_length=1)]


class Embed(Body):
    """What is to be embedded: `input` or `messages`."""

    model: Annotated[str, Field(max_length=300)]
    """An artifact: `NAME`, `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    input: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_IMAGES)] | None = None
    """An image or several, each as a data URI or in base64."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=1)] | None = None
    modality: Literal["image"] = "image"
    encoding_format: Literal["float", "base64"] = "float"
    user: Any = None
    """Has no effect."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Embed:
        if (self.input is None) == (self.messages is None):
            raise ValueError("send either input or messages")
        return self

    @property
    def images(self) -> tuple[str, ...]:
        """As they came."""
        if self.messages is not None:
            return tuple(part.image_url.url for message in self.messages for part in message.content)
        return (self.input,) if isinstance(self.input, str) else self.input or ()


class Embedding(Reply):
    """Of one image."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """L2-normalised; in base64, float32 in little-endian order. Empty where there is an error."""
    error: OpenAIError | None = None


class Usage(Reply):
    """Tokens; images have none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class Embeddings(Reply):
    """In the order of the images."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    """NAME@VERSION that answered."""
    usage: Usage = Usage()


@router.post(
    "/v1/embeddings",
    operation_id="embed",
    responses={**responses(OpenAIErrorReply), **DECLARED},
    response_model_exclude_none=True,
)
async def embed(given: Embed, response: Response, answering: Asked) -> Embeddings:
    """Embed images."""
    images = [from_base64(image) for image in given.images]
    outcomes = await ask_each(answering, images, Ask(artifact=given.model))
    first, *_ = tell(response, outcomes)
    data = [_entry(index, outcome, given.encoding_format) for index, outcome in enumerate(outcomes)]
    return Embeddings(data=data, model=f"{first.artifact}@{first.version}")


def _entry(index: int, outcome: Answer | Refusal, form: str) -> Embedding:
    """Raises Refused where the model gives no features."""
    if isinstance(outcome, Refusal):
        error = OpenAIError(message=outcome.message, type="invalid_request_error", code=outcome.code)
        return Embedding(index=index, embedding=[], error=error)
    if outcome.features is None:
        raise refuse("bad_request", f"{outcome.artifact} is of a model that does not give its features")
    if form == "base64":
        return Embedding(index=index, embedding=base64.b64encode(np.asarray(outcome.features, "<f4")).decode())
    return Embedding(index=index, embedding=outcome.features.tolist())
