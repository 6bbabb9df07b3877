"""A Ray node of its own, with Serve's REST interface, for tests that need what the session-wide cluster does not have:
a dashboard, another environment (HAProxy), replicas that die.

Run as a program it is that node, until its standard input ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.running import haproxy_settings

ROOT = Path(__file__).parents[2]
SETTLED_S = 180


def free_port() -> int:
    """A port at which nobody listens now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@dataclass(frozen=True, slots=True)
class Node:
    """What a test asks of it."""

    home: Path
    dashboard: str
    """URL for `serve deploy -a`."""
    port: int
    """Where Serve answers, once something is deployed with `http_options`."""

    def deploy(self, application: dict[str, Any]) -> None:
        """As `serve deploy`, of one application; Serve listens at `port` of loopback."""
        config = {"http_options": {"host": "127.0.0.1", "port": self.port}, "applications": [application]}
        request = urllib.request.Request(
            f"{self.dashboard}/api/serve/applications/", json.dumps(config).encode(),
            {"Content-Type": "application/json"}, method="PUT",
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200

    def applications(self) -> dict[str, Any]:
        """As `serve status`."""
        with urllib.request.urlopen(f"{self.dashboard}/api/serve/applications/", timeout=60) as answer:
            return json.loads(answer.read())["applications"]

    def replicas(self, name: str) -> dict[str, set[int]]:
        """deployment -> processes of an application's replicas, once it runs and none of them starts or ends."""
        return self.settle(name, lambda _: True)

    def settle(self, name: str, done: Callable[[dict[str, set[int]]], bool]) -> dict[str, set[int]]:
        """As `replicas`, once they are as wanted."""
        until = time.monotonic() + SETTLED_S
        while time.monotonic() < until:
            found = self.applications().get(name, {})
            replicas = {key: one["replicas"] for key, one in found.get("deployments", {}).items()}
            states = {replica["state"] for each in replicas.values() for replica in each}
            if found.get("status") == "RUNNING" and states == {"RUNNING"}:
                pids = {key: {replica["pid"] for replica in each} for key, each in replicas.items()}
                if done(pids):
                    return pids
            time.sleep(0.2)
        raise AssertionError(f"{name} did not settle: {found}")

    def processes(self) -> dict[int, str]:
        """Those of this node, HAProxy among them: process -> its title."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"RAY_TMPDIR={self.home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return {pid: title for pid, title in found.items() if title}


@contextmanager
def node(home: Path, *, haproxy: bool) -> Iterator[Node]:
    """A node for as long as the block lasts; no process of it is left.

    Args:
        home: A short path: Ray's sockets lie below.
        haproxy: In front, instead of Ray's own proxy.
    """
    environ = {
        **os.environ,
        "RAY_TMPDIR": str(home),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}",
        **(haproxy_settings(home) if haproxy else {"RAY_SERVE_ENABLE_HA_PROXY": "0"}),
    }
    environ.pop("RAY_ADDRESS", None)
    dashboard = free_port()
    with (home / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, __file__, str(dashboard)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, env=environ, cwd=ROOT,
        )  # fmt: skip
    made = Node(home, f"http://127.0.0.1:{dashboard}", free_port())
    try:
        assert process.stdout.readline(), (home / "err").read_text()
        yield made
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=90)
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for pid in made.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)
            time.sleep(0.5)


def main(dashboard: int) -> None:
    """Be a node, until standard input ends."""
    import ray
    from ray import serve

    ray.init(
        address="local", num_cpus=8, include_dashboard=True, dashboard_port=dashboard, log_to_driver=False,
        object_store_memory=200 * 2**20, namespace="serve",
    )  # fmt: skip
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
