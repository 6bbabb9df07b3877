"""Every command and snippet of README, docs and examples is run: what we tell people to type works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.M | re.S)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of the fenced blocks of a language; a block marked `not-run` says why beside it."""
    found = []
    for page in PAGES:
        for kind, marks, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if kind == language and "not-run" not in marks:
                found.append((page.name, text))
    return found


def commands() -> list[tuple[str, str]]:
    lines = []
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip()
            if line and not line.startswith(("#", "make ", "source ")):
                lines.append((page, line))
    return lines


@pytest.mark.slow
def test_every_command(tmp_path):
    """In the order of the pages, in one folder, as a reader would: later ones use what earlier ones made."""
    for name in ("recipes", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert len(commands()) >= 5
    for page, line in commands():
        words = shlex.split(line)
        assert words[0] in ("keyhole", "python"), f"{page}: {line}"
        program = [sys.executable, "-m", "keyhole"] if words[0] == "keyhole" else [sys.executable]
        done = subprocess.run(
            [*program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{page}: {line}\n{done.stdout}\n{done.stderr}"


def test_the_readme_says_how_to_reach_the_command(tmp_path):
    """What it says works in a fresh shell, before its first line that needs it."""
    first = blocks("bash")[0][1].splitlines()
    activate = next(line for line in first if line.startswith("source ")).split("  #")[0].strip()
    assert [line.split()[0] for line in first] == ["make", "source", "make"]
    if not (Path(sys.prefix) / "bin/activate").exists():
        pytest.skip("these tests run outside of a virtual environment")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for command in (f"{activate} && keyhole --version", ".venv/bin/keyhole --version"):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "keyhole" in done.stdout, f"{command}\n{done.stderr}"


def test_extras_are_installed_from_the_checkout_and_exist():
    """Keyhole is in no package index: `pip install keyhole[...]` would fetch something else, or nothing."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [
        *PAGES,
        *(path for room in ("engine", "tuning", "bench", "miniature") for path in (ROOT / room).rglob("*.py")),
    ]
    texts = [path.read_text(encoding="utf-8") for path in (*sources, ROOT / "keyhole" / "cli.py")]
    assert not [text for text in texts if re.search(r"pip install '?keyhole", text)]
    advised = {
        name
        for text in texts
        for name in re.findall(r"pip install -e '\.\[(\w+)\]'|\bextra\(['\"](\w+)", text)
        for name in name
        if name
    }
    assert {"data", "export", "hf", "mlflow", "optuna", "wandb"} <= advised <= set(extras)


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_every_snippet(tmp_path, page, text):
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{page}\n{text}\n{done.stderr}"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example(tmp_path, example):
    done = subprocess.run(
        [sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and done.stdout, done.stderr


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
