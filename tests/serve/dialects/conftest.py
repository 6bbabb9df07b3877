"""The application as its clients see it: in this process, and over a real socket on the loopback."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from serve.app import local
from serve.routes import make_api
from serve.settings import ServeSettings


@pytest.fixture(scope="package")
def answering(runs):
    """Every kind of artifact, by its kind's name."""
    made = local(ServeSettings(artifacts={kind: [str(folder)] for kind, folder in runs.items()}))
    yield made
    made.close()


@pytest.fixture(scope="package")
def api(answering):
    return make_api(answering)


@pytest.fixture(scope="package")
def address(api) -> Iterator[str]:
    """`http://127.0.0.1:PORT` of a uvicorn that serves all artifacts."""
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(1000):
        if server.started:
            break
        time.sleep(0.01)
    (socket,) = server.servers[0].sockets
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="package")
def in_base64():
    """Encoded images as JSON carries them: `in_base64(image)`, `in_base64(image, uri=True)`."""

    def encode(image: bytes, uri: bool = False) -> str:
        text = base64.b64encode(image).decode()
        return f"data:image/png;base64,{text}" if uri else text

    return encode
