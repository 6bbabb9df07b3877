"""The start of Ray: where it is, who has SIGTERM afterwards, and whether there is room for what is asked.

Knows nothing of what runs on Ray.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.errors import BoxError, RecipeError

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512 * 2**20
"""Of a local Ray that the pool starts itself: only candidates and replies pass through it."""
REACH_S = 10.0
"""How long the head of a cluster may take to accept a connection."""


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """For around `ray.init`: Ray takes SIGTERM over and would end this process on the spot; its owner gets it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if owner is None else owner)


def check_room(cpus: float, gpus: float, *, own: bool, what: str = "a worker") -> None:
    """Say at once that no node of the connected Ray can hold an actor, for which Ray itself would wait without a word.

    Args:
        cpus, gpus: what one asks for.
        own: whether this process started the Ray, which then cannot grow.
        what: the actor, for the message.

    Raises BoxError where the Ray is our own; warns on another, which may grow.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return
    largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU")}
    sentence = (
        f"{what} asks for {cpus:g} CPUs and {gpus:g} GPUs, but no node of this Ray has them: at most "
        f"{largest['CPU']:g} CPUs and {largest['GPU']:g} GPUs; lower pool.cpus or pool.gpus"
    )
    if own:
        raise BoxError(sentence)
    log.warning("%s, or wait until the cluster has grown", sentence)


def reach(address: str) -> None:
    """Raise at once where there is no Ray at an address: Ray itself tries for many minutes before it says so."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "/" in host or not host or not port.isdigit():
        raise RecipeError(f"Ray address {address!r} must be HOST:PORT, as `ray start` prints it, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError, UnicodeError) as error:  # nobody there; no such port; no such name
        why = error.strerror if isinstance(error, OSError) else None
        raise BoxError(f"no Ray at {address} ({why or error}); check --address and RAY_ADDRESS") from error


def connect(workers: int, cpus: float) -> tuple[Any, bool]:
    """The ray module, connected, and whether this process started the cluster."""
    try:
        import ray
    except ImportError:
        raise RecipeError("workers > 0 needs Ray: pip install 'ray[tune,serve]', or run with workers=0") from None
    if ray.is_initialized():
        return ray, False
    if os.environ.get("RAY_ADDRESS"):
        reach(os.environ["RAY_ADDRESS"])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers are as nice as 15 by default: beside any other work on the machine they would hardly compute.
    os.environ.setdefault("RAY_worker_niceness", "0")
    wanted = max(os.cpu_count() or 1, math.ceil(workers * cpus))
    ray.init(
        address="local",
        num_cpus=wanted,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    return ray, True
