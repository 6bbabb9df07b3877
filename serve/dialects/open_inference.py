"""Open Inference Protocol v2 (KServe): whether the server lives and is ready."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from serve.refusals import RESPONSES, Refused
from serve.routes import Asked

router = APIRouter(prefix="/v2", tags=["open inference protocol"])


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


@router.get("/health/live", operation_id="live")
async def live() -> Live:
    """Whether the process answers."""
    return Live(live=True)


@router.get("/health/ready", operation_id="ready", responses={503: RESPONSES[503]})
async def ready(answering: Asked) -> Ready:
    """Whether images are encoded: one is, of every model."""
    if (refusal := await answering.ready()) is not None:
        raise Refused(refusal)
    return Ready(ready=True)
