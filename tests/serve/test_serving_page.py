"""docs/serving.md: every request that it tells is sent, by the same words, to a server of this process."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import uvicorn

from serve.app import local
from serve.routes import make_api
from serve.settings import ServeSettings

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
TOLD = "127.0.0.1:8000"
REQUESTS = [
    line for block in re.findall(r"^```bash[^\n]*\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()
]
REQUESTS = [line for line in REQUESTS if "curl " in line]


@pytest.fixture(scope="module")
def port(runs):
    answering = local(ServeSettings(artifacts={"digits": [str(runs["digits"])]}))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen()  # requests wait until it runs
        server = uvicorn.Server(uvicorn.Config(make_api(answering), log_level="error"))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(30)
    answering.close()


def test_there_is_a_request_of_each_dialect():
    paths = (
        "/models/digits",
        "/v2/models/digits/infer",
        "/v1/decisions",
        "/v1/embeddings",
        "/v1/models/digits/answers",
    )
    assert all(any(f"{TOLD}{path}" in line for line in REQUESTS) for path in paths)


@pytest.mark.parametrize("line", REQUESTS, ids=lambda line: line.partition(TOLD)[2].strip("'"))
def test_every_request(port, photo, tmp_path, line):
    (tmp_path / "photo.png").write_bytes(photo())
    words = line.replace("curl ", "curl --fail-with-body --silent --show-error ").replace(TOLD, f"127.0.0.1:{port}")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) and "refusal" not in done.stdout
