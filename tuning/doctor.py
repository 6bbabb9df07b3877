"""The state of the environment: what is installed, what the hardware is, whether the embedded weights are whole.

Knows nothing of runs.
"""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engine.errors import KeyholeError

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "ray",
    "nevergrad",
    "numpy",
    "scikit-learn",
    "pillow",
    "safetensors",
)


def examine(box_uri: str | None = None) -> dict[str, Any]:
    """Facts by name; `healthy` is False where something needed is missing or damaged."""
    findings: dict[str, Any] = {
        "keyhole": _version("keyhole"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        **{name: _version(name) for name in PACKAGES},
    }
    healthy = all(findings[name] != "missing" for name in PACKAGES if name != "ray")
    if findings["torch"] != "missing":
        import torch

        findings["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings["ray_address"] = os.environ.get("RAY_ADDRESS", "none: a local Ray is started where workers > 0")
    for name, state in _weights().items():
        findings[f"mini:{name}"] = state
        healthy &= state.startswith("whole")
    if box_uri is not None:
        healthy &= _box(box_uri, findings)
    return {**findings, "healthy": bool(healthy)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _weights() -> dict[str, str]:
    from miniature import models

    states = {}
    for name in models.HASHES:
        try:
            states[name] = f"whole, sha256 {models.load(name).weights_hash[:16]}"
        except KeyholeError as error:
            states[name] = str(error)
    return states


def _box(uri: str, findings: dict[str, Any]) -> bool:
    from engine.boxes import open_box

    try:
        spec = open_box(uri, classes=("red", "blue"), template="a photo of a {}.").spec
    except KeyholeError as error:
        findings["box"] = str(error)
        return False
    findings["box"] = uri
    findings["gives"] = ", ".join(sorted(spec.gives))
    findings["accepts"] = ", ".join(sorted(spec.accepts))
    findings["path"] = spec.path
    findings["identity"] = spec.identity
    return True
