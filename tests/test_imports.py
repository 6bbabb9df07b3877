"""Who may import whom: the arrows of the house, read from the source."""

from __future__ import annotations

import ast
import re
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


TARGET = re.compile(rf"^({'|'.join(OURS)})[\w.]*:[A-Za-z_.]+$")
RESOLVED_LATE = {"miniature:open_box", "tuning.white_box.ceiling:Ceiling"}
"""Entries of the engine's registries that stand outside of it."""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_of_strings_are_arrows_too(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TARGET.match(node.value):
            target = node.value.split(".")[0].split(":")[0]
            assert target in ALLOWED[room] or node.value in RESOLVED_LATE, f"{path} may not name {node.value}"


ASKS = (
    "engine/evaluators/",
    "engine/classifier.py",
    "engine/boxes/",
    "tuning/white_box/",
    "tuning/doctor.py",
    "bench/",
)
"""Who asks a box: whatever is booked goes through an evaluator; classifiers and references book nothing."""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_box_is_asked_where_it_is_booked(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        call = node.func if isinstance(node, ast.Call) else None
        if isinstance(call, ast.Attribute) and call.attr == "answer" and "box" in ast.unparse(call.value):
            assert relative.startswith(ASKS), f"{relative}:{call.lineno} asks a box"


OFFERED = {"needs", "prefers", "start", "run", "space", "decode", "spec", "answer", "stage", "head", "prompt", "box"}
"""Names of the protocols."""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_may_be_offered_stands_in_the_protocols(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            asked = node.args[1].value if isinstance(node.args[1], ast.Constant) else None
            assert asked not in OFFERED, f"{path}:{node.lineno} asks for {asked!r} by name"


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
