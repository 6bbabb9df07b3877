"""Who may import whom: the arrows of the house, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("keyhole", "engine", "tuning", "serve", "miniature", "bench")
ALLOWED = {
    "engine": {"engine"},
    "miniature": {"miniature", "engine"},
    "tuning": {"tuning", "engine", "miniature"},
    "serve": {"serve", "engine"},
    "keyhole": {"keyhole", "tuning", "serve", "bench", "engine"},
    "bench": {"bench", "engine", "tuning", "serve", "miniature", "keyhole"},
}
HEAVY = {
    "torch": ("engine/boxes/", "engine/heads/", "miniature/", "tuning/white_box/", "tuning/doctor.py", "bench/"),
    "open_clip": ("engine/boxes/", "miniature/", "tuning/white_box/", "bench/"),
    "ray": ("engine/evaluators/ray_", "tuning/compare/", "serve/", "keyhole/", "bench/"),
}


def _sources() -> list[Path]:
    files: list[Path] = []
    for package in OURS:
        files += sorted((ROOT / package).rglob("*.py"))
    return files


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    room = relative.split("/")[0]
    for name in _imported(path):
        if name in OURS:
            assert name in ALLOWED[room], f"{relative} may not import {name}"
        if name in HEAVY:
            assert relative.startswith(HEAVY[name]), f"{relative} may not import {name}"


def test_core_is_light() -> None:
    code = (
        "import sys, engine.protocols, engine.tuning_loop, engine.search, engine.ledger, engine.prompts;"
        "print([m for m in ('torch', 'ray', 'nevergrad', 'matplotlib', 'open_clip', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_front_door_is_light() -> None:
    heavy = "('torch', 'ray', 'nevergrad', 'numpy')"
    code = f"import sys, keyhole; print([m for m in {heavy} if m in sys.modules]); keyhole.Classifier.load"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
