"""The HTTP application: every dialect's routes over one `Answering`.

Knows nothing of Ray: a test gives it an `Answering` of this process.
"""

from __future__ import annotations

import importlib
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from serve import refusals
from serve.answering import Answering
from serve.dialects import DIALECTS


def _answering(request: Request) -> Answering:
    return request.app.state.answering


Asked = Annotated[Answering, Depends(_answering)]
"""What a route asks: the parameter `answering: Asked`."""


def make_api(answering: Answering) -> FastAPI:
    """The application, which asks `answering`."""
    api = FastAPI(title="Keyhole", summary="Tuned prompts of frozen vision-language models", redoc_url=None)
    api.state.answering = answering
    refusals.install(api)
    for name in DIALECTS:
        api.include_router(importlib.import_module(f"serve.dialects.{name}").router)
    return api
