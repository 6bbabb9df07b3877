"""A thread that looks a shelf's folders over, again and again."""

from __future__ import annotations

import logging
import threading

from serve.artifact_shelf import Shelf

LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class Watcher:
    """Looks once on the spot, then every second until `close`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._closed = threading.Event()
        shelf.scan()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            try:
                self._shelf.scan()
            except Exception:  # a look that fails must not be the last one
                logger.exception("looking for artifacts failed")
