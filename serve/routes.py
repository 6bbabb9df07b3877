"""The HTTP application: the page, and every dialect's routes over one `Answering`.

Knows nothing of Ray: a test gives it an `Answering` of this process.
"""

from __future__ import annotations

import importlib
import logging
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from serve import page, refusals
from serve.answering import Answering
from serve.dialects import DIALECTS
from serve.limits import BodyLimit, KeyGate
from serve.telemetry import Access, Observed


async def _answering(request: Request) -> Answering:
    return request.app.state.answering


Asked = Annotated[Answering, Depends(_answering)]
"""What a route asks: the parameter `answering: Asked`."""


def make_api(answering: Answering, *, max_body_bytes: int = 128 * 2**20, keys: tuple[bytes, ...] = ()) -> FastAPI:
    """The application.

    Args:
        answering: Whom it asks.
        max_body_bytes: Longer bodies are refused.
        keys: Hashes of the API keys (keys.py); none: everybody may ask.
    """
    api = FastAPI(title="Keyhole", summary="Tuned prompts of frozen vision-language models", redoc_url=None)
    api.state.answering = Observed(answering)
    refusals.install(api)
    api.include_router(page.router)
    for name in DIALECTS:
        api.include_router(importlib.import_module(f"serve.dialects.{name}").router)
    api.add_middleware(BodyLimit, most=max_body_bytes)
    if keys:
        api.add_middleware(KeyGate, hashes=keys)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every broken form
    api.add_middleware(Access)  # added last, it comes first
    return api
