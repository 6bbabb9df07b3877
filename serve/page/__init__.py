"""The page at `/`: somebody gives an image, chooses artifacts, and sees what they answer.

Four static files, read once. The page asks as any client does: `GET /v1/artifacts`, and `POST /models/NAME` in Hugging
Face's form. It needs no key itself, so that it can ask for one, and loads nothing from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response

FILES = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/script.js": ("script.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""path -> file of this folder, and its type."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # ask again whether it has changed, as after an upgrade
}
"""No script but the page's own, and no text becomes HTML: names of artifacts and classes are anybody's."""


def _route(file: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = Path(__file__).with_name(file).read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return answer


router = APIRouter(include_in_schema=False)
for _path, (_file, _kind) in FILES.items():
    router.add_api_route(_path, _route(_file, _kind), methods=["GET", "HEAD"])
