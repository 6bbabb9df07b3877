"""What a comparison tells while it runs: a live table or plain lines, and trackers through Ray Tune's own callbacks.

Knows nothing of Ray beyond the names of its callbacks, and of what a trial does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import RecipeError, extra, nearest
from tuning.compare.trial import ERROR, RESULT, STOPPED

REDRAW_S = 0.2


@dataclass(frozen=True)
class Tracker:
    """One of Tune's logger callbacks."""

    target: str
    """`module:Class`, imported when the comparison starts."""
    package: str
    """What must be installed for it."""
    settings: Callable[[Path], dict[str, Any]]
    """Keywords for a comparison's folder."""

    def callback(self, out: Path) -> Any:
        """The callback itself."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(**self.settings(out))


def _mlflow(out: Path) -> dict[str, Any]:
    if "MLFLOW_TRACKING_URI" not in os.environ:
        # MLflow 3 wants a database unless it is told that files will do; here they are the folder's own record.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = os.environ.get("MLFLOW_TRACKING_URI", (out / "mlflow").as_uri())
    return {"tracking_uri": uri, "experiment_name": out.name, "tags": {"keyhole": str(out)}}


def _wandb(out: Path) -> dict[str, Any]:
    told = {"project": os.environ.get("WANDB_PROJECT", "keyhole"), "group": out.name,
            "dir": os.environ.get("WANDB_DIR", str(out))}  # fmt: skip
    mode = os.environ.get("WANDB_MODE")  # said aloud: Ray's processes have an environment of their own
    return {**told, "mode": mode} if mode else told


def _check_wandb() -> None:
    known = os.environ.get("WANDB_MODE") in ("offline", "disabled") or "WANDB_API_KEY" in os.environ
    if not known and not importlib.import_module("wandb").api.api_key:
        raise RecipeError("tracker wandb is not logged in: run wandb login, set WANDB_API_KEY, or WANDB_MODE=offline")


TRACKERS = {
    "tensorboard": Tracker("ray.tune.logger:TBXLoggerCallback", "tensorboardX", lambda out: {}),
    "mlflow": Tracker("ray.tune.logger.mlflow:MLflowLoggerCallback", "mlflow", _mlflow),
    "wandb": Tracker("ray.tune.logger.wandb:WandbLoggerCallback", "wandb", _wandb),
}
"""By the name of `--track`."""


def installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as W&B itself leaves in its wake, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def check(names: Sequence[str]) -> tuple[Tracker, ...]:
    """The trackers of these names. Raises RecipeError for one that is unknown, not installed or not logged in."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"tracker {name!r}{nearest(name, TRACKERS)}; allowed are {', '.join(TRACKERS)}")
        if not installed(TRACKERS[name].package):
            raise RecipeError(f"tracker {name} needs the package {TRACKERS[name].package!r}; {extra(name)}")
        if name == "wandb":
            _check_wandb()
    return tuple(TRACKERS[name] for name in names)


class Board:
    """Progress of a comparison: a line a finished trial; on a terminal, the running ones in a table below.

    Args:
        write: takes text for stderr, ending in a newline.
        live: whether that is a terminal that can redraw.
    """

    def __init__(self, write: Callable[[str], None], *, live: bool = False) -> None:
        self.write, self.live = write, live
        self.total = self.ended_count = 0
        self.running: dict[str, dict[str, Any]] = {}
        self._shown = 0
        self._drawn = 0.0
        self._started = time.monotonic()

    def expect(self, total: int, done: int) -> None:
        """A batch of trials begins, some of them done before."""
        self.total, self.ended_count = total, done
        self.running.clear()
        if done:
            self._line(f"{done} of {total} trials were done before")

    def begun(self, folder: Path) -> None:
        """A trial runs."""
        self.running[folder.name] = {}
        self._draw()

    def heard(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """A trial told how far it is."""
        self.running.setdefault(folder.name, {}).update(metrics)
        self._draw()

    def ended(self, folder: Path) -> None:
        """A trial came to an end, good or bad."""
        self.running.pop(folder.name, None)
        self.ended_count += 1
        count = f"{self.ended_count}/{self.total} " if self.total else ""
        self._line(f"{count}{folder.name}: {_ending(folder)}")

    def clear(self) -> None:
        """Take the table away."""
        if self.live and self._shown:
            self.write(f"\x1b[{self._shown}F\x1b[J")
            self._shown = 0

    def _line(self, text: str) -> None:
        self.clear()
        self.write(text + "\n")
        self._draw(now=True)

    def _draw(self, now: bool = False) -> None:
        if not self.live or (not now and time.monotonic() - self._drawn < REDRAW_S):
            return
        self._drawn = time.monotonic()
        width = shutil.get_terminal_size().columns - 1
        rows = [f"  {self.ended_count}/{self.total} trials, {time.monotonic() - self._started:.0f} s"]
        for name, metrics in self.running.items():
            told = "  ".join(
                f"{word} {metrics[key]:.{digits}f}"
                for word, key, digits in (("evaluations", "evaluations", 0), ("loss", "best_loss", 4),
                                          ("val loss", "val_loss", 4), ("val accuracy", "val_accuracy", 3))
                if isinstance(metrics.get(key), float | int)
            )  # fmt: skip
            rows.append(f"  > {name}  {told}")
        self.clear()
        self.write("".join(row[:width] + "\n" for row in rows))
        self._shown = len(rows)


def _ending(folder: Path) -> str:
    if (folder / ERROR).exists():
        return "failed: " + json.loads((folder / ERROR).read_text(encoding="utf-8"))["error"]
    if (folder / STOPPED).exists():
        return "stopped early"
    if not (folder / RESULT).exists():
        return "interrupted"
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return (
        f"accuracy {result['accuracy']:.4f} (zero-shot {result['zero_shot_accuracy']:.4f}), "
        f"{result['evaluations']:.0f} evaluations, {result['seconds']:.1f} s"
    )
