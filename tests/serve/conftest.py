"""Artifacts of every kind, made once a session, and the application in this process, without Ray."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from served import KINDS

from keyhole import tune
from serve.app import local
from serve.routes import make_api
from serve.settings import ServeSettings


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run folder of each kind."""
    home = tmp_path_factory.mktemp("served")
    for kind, settings in KINDS.items():
        tune(out=home / kind, **settings)
    return {kind: home / kind for kind in KINDS}


@pytest.fixture(scope="session")
def photo():
    """Encoded images of noise: `photo(seed, format="PNG", size=(20, 9))`."""

    def draw(seed: int = 0, format: str = "PNG", size: tuple[int, int] = (20, 9)) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format)
        return stream.getvalue()

    return draw


@pytest.fixture
def serving(request):
    """The application over run folders, in this process: `serving(pets=folder, ...)` gives a client."""

    def start(watch: Path | None = None, **artifacts: Path) -> TestClient:
        settings = ServeSettings(
            artifacts={name.replace("_", "-"): [str(folder)] for name, folder in artifacts.items()},
            watch=None if watch is None else str(watch),
        )
        answering = local(settings)
        request.addfinalizer(answering.close)
        client = TestClient(make_api(answering), raise_server_exceptions=False)
        client.answering = answering
        return client

    return start
