"""One writer per folder: a lease that a second process respects, and takes over from a process that has died.

`lease.json` names the holder: host, process and its start time. On the same host a lease is valid while that process
lives; on another, while the holder touches the file, which its thread does every `BEAT_S` seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import ArtifactError
from engine.files import unwritable, write_text

log = logging.getLogger(__name__)

LEASE = "lease.json"
BEAT_S = 15.0
EXPIRES_S = 120.0
"""A lease of another host has expired when untouched for this long. Hosts' clocks must agree better than that."""
PATIENCE_S = 2 * EXPIRES_S
"""How long a trial waits for its earlier process, whose node may have been lost with the lease still valid."""


class Lease:
    """The right to write a folder, for the length of a `with` block. The folder is made where it is missing.

    Args:
        folder: The folder to write.
        patience_s: Seconds to wait for another holder to end.

    Raises ArtifactError on entry, where another process holds it or it cannot be written.
    """

    def __init__(self, folder: Path, *, patience_s: float = 0.0) -> None:
        self.folder, self.patience_s = folder, patience_s
        self._path = folder / LEASE
        self._me = {
            "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()),
            "token": secrets.token_hex(8),
        }  # fmt: skip
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        deadline, said = time.monotonic() + self.patience_s, False
        while (holder := self._take()) is not None:
            who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            if time.monotonic() >= deadline:
                raise ArtifactError(
                    f"{self.folder} is being written by {who}; wait until it has ended, or name another --out"
                )
            if not said:
                log.warning("%s is being written by %s; waiting for it to end", self.folder, who)
                said = True
            time.sleep(0.2)
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            if _read(self._path) == self._me:
                self._path.unlink()

    def confirm(self) -> None:
        """Raises ArtifactError where another process took the folder over, because this one seemed dead."""
        holder = _read(self._path)
        if holder is None:  # somebody removed the file
            holder = self._take()
        if holder is not None and holder != self._me:
            raise ArtifactError(
                f"{self.folder} was taken over by another process, as this one had not been heard of for "
                f"{EXPIRES_S:g} s; it goes on there, and ends here"
            )

    def _take(self) -> dict[str, Any] | None:
        """Take the lease; None on success, else its holder ({} where that is not known)."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                holder = _read(self._path)
                if holder is not None and self._lives(holder):
                    return holder
                if holder is not None:
                    log.warning("%s was left by a process that has died: taken over", self.folder)
                    write_text(self._path, json.dumps(self._me) + "\n")
                    return None
                try:
                    handle = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                except FileExistsError:  # on a file system without locks
                    return {}
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(json.dumps(self._me) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                if _read(self._path) == {}:
                    self._path.unlink()
            raise unwritable(self.folder, error) from error
        return None

    def _lives(self, holder: dict[str, Any]) -> bool:
        if holder.get("host") == self._me["host"] and isinstance(holder.get("pid"), int):
            return _started(holder["pid"]) == holder.get("started")
        try:
            return time.time() - self._path.stat().st_mtime < EXPIRES_S
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # writing there reports a full or lost disk
                os.utime(self._path)


def _read(path: Path) -> dict[str, Any] | None:
    """The holder in a lease file; None where there is no file, {} where it cannot be read."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and {"host", "pid"} <= told.keys() else {}


def _started(pid: int) -> str | None:
    """The start time of a live process; None where there is none with this id.

    Without /proc it is the same for every live process, so a reused id is mistaken for the old process.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "live"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block, no other process of this host looks at the lease or takes it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # network file systems may lack locks; exclusive creation works there too
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
