"""The ways to serve that are compared, each a process of its own, and the CPU time of all that it starts.

`python -m bench.serving.ways WAY FOLDER PORT` serves until its standard input ends.
"""

from __future__ import annotations

import io
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request  # FastAPI looks the routes' annotations up in the module

from engine.errors import BoxError

WAYS = {
    "in-process": "the application in one uvicorn process, without Ray",
    "plain": "FastAPI and open_clip in one uvicorn process: an image a request, no batches",
    "ray": "the application on Ray Serve, behind Ray's own proxy",
    "haproxy": "the application on Ray Serve, behind HAProxy",
}
MARK = "KEYHOLE_BENCH_SERVER"
"""An environment variable that a server's processes inherit, whoever starts them."""
START_S = 180.0


@dataclass(frozen=True)
class Server:
    """One that answers."""

    way: str
    artifacts: int
    port: int
    folder: Path
    """The watched folder."""
    mark: str
    first_answer_s: float
    """From the start of the process to its first answer for an image."""

    def cpu_s(self) -> dict[int, float]:
        """Process -> seconds of CPU time so far, of all processes of the server, those of Ray included."""
        found = {}
        for home in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (home / "environ").read_bytes():
                    times = (home / "stat").read_text().rpartition(")")[2].split()[11:13]
                    found[int(home.name)] = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
            except OSError:  # not ours, or gone
                continue
        return found


@contextmanager
def started(way: str, folder: Path, artifacts: int, first: bytes) -> Iterator[Server]:
    """A server over the artifacts in a folder, for as long as the block lasts.

    Args:
        way: Of `WAYS`.
        folder: Its subfolders are artifacts.
        artifacts: How many.
        first: An encoded image, for which `bench-0` must answer before the block begins.

    Raises:
        BoxError: It does not answer in time.
    """
    mark, port = secrets.token_hex(8), free_port()
    words = [sys.executable, "-m", "bench.serving.ways", way, str(folder), str(port)]
    environ = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ)
    try:
        while not _answers(port, first):
            if process.poll() is not None or time.perf_counter() - begin > START_S:
                raise BoxError(f"the server {way!r} does not answer; what it wrote stands above")
            time.sleep(0.05)
        yield Server(way, artifacts, port, folder, mark, time.perf_counter() - begin)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """One on which nobody listens now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def path_of(way: str, artifact: str) -> str:
    """Where a server takes images for an artifact."""
    return "/predict" if way == "plain" else f"/v1/models/{artifact}/answers"


def _answers(port: int, image: bytes) -> bool:
    """Whether an image is answered, by any way's route."""
    for path in (path_of("haproxy", "bench-0"), path_of("plain", "")):
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", image, {"Content-Type": "image/png"})
        try:
            with urllib.request.urlopen(request, timeout=10):
                return True
        except OSError:
            continue
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Within the process


def main(way: str, folder: str, port: str) -> None:
    """Serve until standard input ends."""
    from serve.settings import ServeSettings

    settings = ServeSettings(watch=folder)
    if way in ("in-process", "plain"):
        _uvicorn(_plain(Path(folder)) if way == "plain" else _application(settings), int(port))
        return
    if way == "ray":
        import ray.serve  # noqa: F401  (HAProxy is chosen before Ray Serve is imported, or not at all)
    from serve.running import running

    with running(settings, port=int(port)):
        sys.stdin.read()


def _uvicorn(api: Any, port: int) -> None:
    import threading

    import uvicorn

    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="warning", access_log=False))

    def end() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    server.run()
    os._exit(0)  # threads that wait for work would hold the process


def _application(settings: Any) -> Any:
    from serve.app import local
    from serve.routes import make_api

    return make_api(local(settings))


def _plain(folder: Path) -> Any:
    """What one writes by hand: open_clip's own transform and forward for one image, in FastAPI's pool of threads."""
    import torch
    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool
    from open_clip.transform import image_transform
    from PIL import Image

    from engine.artifact import Artifact
    from engine.boxes import open_box

    artifact = Artifact.load(folder / "bench-0")
    classes = artifact.meta["classes"]
    opening = {"classes": classes, "template": artifact.meta["template"], "device": "cpu", "threads": 1}
    box: Any = open_box(artifact.meta["box"], **opening)
    model, form = box.image_tower.model, box.preprocess
    transform = image_transform(
        form.size, is_train=False, mean=form.mean, std=form.std, interpolation=form.interpolation
    )
    rows = torch.from_numpy(artifact.arrays["text_features"].copy())
    torch.set_num_threads(1)
    api = FastAPI()

    @torch.inference_mode()
    def classify(data: bytes) -> dict[str, float]:
        pixels = transform(Image.open(io.BytesIO(data)).convert("RGB"))
        features = model.encode_image(pixels[None], normalize=True)
        return dict(zip(classes, (box.scale * features @ rows.T).softmax(-1)[0].tolist(), strict=True))

    @api.post("/predict")
    async def predict(request: Request) -> dict[str, float]:
        return await run_in_threadpool(classify, await request.body())

    return api


if __name__ == "__main__":
    main(*sys.argv[1:])
