"""When, where and with what a comparison ran: an entry of `ran.json` for its beginning and for every resume.

Written while it runs, so that a report remade later or elsewhere names what made the numbers, not what made the page.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.artifact import write_text
from engine.evaluators.problem import cpu_model, installed_version
from engine.outcome import release

RAN = "ran.json"
PACKAGES = ("numpy", "torch", "open_clip_torch", "ray", "nevergrad", "scikit-learn")


def now() -> str:
    """The time in UTC, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


@contextmanager
def recorded(out: Path, *, parallel: int | None, since: float) -> Iterator[None]:
    """Record one session of a comparison in its folder; an entry without `seconds` was killed, or still runs.

    Args:
        out: the comparison's folder.
        parallel: trials at once, as the user asked for them.
        since: `time.monotonic()` when it started.
    """
    earlier, entry = sessions(out), {"started": now(), "seconds": None, "parallel": parallel, **_here(out)}

    def write() -> None:
        write_text(out / RAN, json.dumps([*earlier, entry], indent=2) + "\n")

    write()
    try:
        yield
    finally:
        entry["seconds"] = round(time.monotonic() - since, 1)
        write()


def sessions(out: Path) -> list[dict[str, Any]]:
    """The sessions of a comparison, in order; none where it was made before they were recorded."""
    file = out / RAN
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def _here(out: Path) -> dict[str, Any]:
    return {
        "folder": os.path.relpath(Path.cwd(), out.parent),  # where relative paths of tasks begin
        "keyhole": release(),
        "commit": commit(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := installed_version(name))},
    }


def commit() -> str | None:
    """The git commit that this code is of, and whether it was changed since; None where it is no checkout."""
    here = Path(__file__)

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed code may lie inside somebody else's checkout
        return git("rev-parse", "HEAD") + " with changes" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
