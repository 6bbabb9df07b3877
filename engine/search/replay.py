"""Restoring a search that cannot be written down: it is begun anew and told the losses that it was told before.

Knows nothing of what the search inside is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.checkpoint import Like, arrays_like
from engine.errors import ArtifactError
from engine.protocols import Feedback, Search


def replay(search: Search, state: dict[str, Any], asked: Callable[[], str], advice: str) -> None:
    """Bring a search that has just begun to where `state` was taken.

    Args:
        search: it asks the same candidates when it is told the same losses.
        state: `losses` `(n,)` in the order told, and `asked`, a digest of all that was asked.
        asked: the search's own digest so far.
        advice: the message where the digests differ.

    Raises:
        ArtifactError: the digests differ, or the state is not of this kind.
    """
    losses = arrays_like(state, {"losses": Like("float64", (None,), finite=False)}, besides=["asked"])["losses"]
    done = 0
    while done < len(losses):
        thetas = search.ask(len(losses) - done)
        search.tell(thetas, Feedback(losses=losses[done : done + len(thetas)]))
        done += len(thetas)
    if asked() != state["asked"]:
        raise ArtifactError(advice)
