"""Keyhole's own routes about what is served: the models, and the state of the shelf."""

from __future__ import annotations

from fastapi import APIRouter

from serve.routes import Asked
from serve.schema import ModelCard, ModelList, Shelf

router = APIRouter(tags=["keyhole"])


@router.get("/v1/models", operation_id="list_models")
async def models(answering: Asked) -> ModelList:
    """The artifacts that answer, in OpenAI's form."""
    return ModelList(data=[ModelCard(id=offer.name) for offer in await answering.offers() if offer.live])


@router.get("/v1/artifacts", operation_id="list_artifacts")
async def artifacts(answering: Asked) -> Shelf:
    """What is on the shelf: versions, traffic, shadows, and what was refused and why."""
    return Shelf(artifacts=await answering.offers())
