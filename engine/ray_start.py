"""What must be known around the start of Ray: who has SIGTERM afterwards, and whether there is room for what is asked.

Knows nothing of what runs on Ray.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import BoxError

log = logging.getLogger(__name__)


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
