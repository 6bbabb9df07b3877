"""`GET /v1/models`, in OpenAI's form: the artifacts that answer."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path

from serve.answering import Refusal
from serve.dialects.error_forms import responses
from serve.refusals import Refused
from serve.routes import Asked
from serve.schema import OpenAIErrorReply, Reply

router = APIRouter(tags=["openai"])


class ModelCard(Reply):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "keyhole"


class ModelList(Reply):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models", operation_id="list_models", responses=responses(OpenAIErrorReply, 401))
async def models(answering: Asked) -> ModelList:
    """The artifacts that answer."""
    return ModelList(data=[ModelCard(id=offer.name) for offer in await answering.offers() if offer.live])


@router.get("/v1/models/{name}", operation_id="get_model", responses=responses(OpenAIErrorReply, 401, 404, 422))
async def model(name: Annotated[str, Path(max_length=300)], answering: Asked) -> ModelCard:
    """One artifact, which may be `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    if isinstance(found := await answering.about(name), Refusal):
        raise Refused(found)
    return ModelCard(id=name)
