"""A house to add to: one of each kind is added here, as a room and a line; docs/contributing.md is true."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import keyhole as kh
from engine import boxes, heads, prompts, search
from engine.boxes.toy import ToyBox
from engine.protocols import Prompts
from engine.random_streams import Purpose, rng
from engine.search_space import Space
from engine.tuning_loop import SearchMethod

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


# A prompt kind, a method and a box scheme; a head is added in tests/engine/test_heads.py.


@dataclass(frozen=True)
class Shift:
    """One number that moves all entries of the template's context."""

    context: np.ndarray

    @property
    def space(self):
        return Space(dim=1, moves=frozenset({"text"}))

    def decode(self, thetas):
        return Prompts(count=len(thetas), context=self.context[None] + thetas[:, :, None])


def shift(spec, *, subspace, seed):
    """One number for the whole context."""
    return Shift(spec.text.context)


@dataclass(frozen=True)
class Darts(SearchMethod):
    """Random search: darts thrown around the template."""

    spread: float = 1.0

    def start(self, space, candidates, seed):
        return Throws(space.dim, self.spread, seed)


class Throws:
    def __init__(self, dim, spread, seed):
        self.best, self.loss, self.step, self.spread, self.seed = np.zeros(dim, np.float32), np.inf, 0, spread, seed

    def ask(self, limit):
        draws = rng(self.seed, self.step, Purpose.PROBES).standard_normal((min(limit, 4), len(self.best)))
        return (self.spread * draws * (self.step > 0)).astype(np.float32)

    def tell(self, thetas, feedback):
        self.step += 1
        if feedback.losses.min() < self.loss:
            self.best, self.loss = thetas[feedback.losses.argmin()], float(feedback.losses.min())

    def recommend(self):
        return self.best

    def state_dict(self):
        return {"best": self.best, "loss": self.loss, "step": self.step}

    def load_state_dict(self, state):
        self.best, self.loss, self.step = state["best"], state["loss"], state["step"]


def open_twin(request):
    """The toy's twin."""
    return ToyBox(uri=request.uri, classes=request.classes, template=request.template, gives=request.gives)


@pytest.fixture
def room(monkeypatch):
    made = ModuleType("a_room")
    made.shift, made.Darts, made.open_twin = shift, Darts, open_twin
    monkeypatch.setitem(sys.modules, "a_room", made)


def listed(what, command):
    return {row["name"]: row["what"] for row in json.loads(command("list", what, "--json")[1])[what]}


def test_a_new_prompt_kind_is_a_room_and_a_line(room, monkeypatch, command, tmp_path):
    monkeypatch.setitem(prompts.PROMPTS, "shift", "a_room:shift")
    tuned = kh.tune("toy:", "toy:", prompt="shift", method="momentum", budget=30, out=tmp_path / "run")
    assert tuned.artifact.arrays["theta"].shape == (1,) and tuned.metrics["accuracy"] > 0
    assert kh.load(tmp_path / "run").artifact.meta["parametrization"]["name"] == "shift"
    assert listed("prompts", command)["shift"] == "One number for the whole context"


def test_a_new_method_is_a_room_and_a_line(room, monkeypatch, command):
    monkeypatch.setitem(search.METHODS, "darts", "a_room:Darts")
    tuned = kh.tune("toy:", "toy:", method={"name": "darts", "spread": 0.5}, budget=30)
    assert "Darts(spread=0.5)" in tuned.artifact.meta["method"] and tuned.ledger["evaluations"] <= 30
    assert listed("methods", command)["darts"] == "Random search: darts thrown around the template."


def test_a_new_box_scheme_is_a_room_and_a_line(room, monkeypatch, command):
    monkeypatch.setitem(boxes.SCHEMES, "twin", "a_room:open_twin")
    twin, toy = (kh.tune(uri, "toy:", method="momentum", budget=30) for uri in ("twin:?noise=0", "toy:?noise=0"))
    assert twin.metrics == toy.metrics and twin.box.spec.uri == "twin:?noise=0"
    assert listed("boxes", command)["twin:"] == "The toy's twin"


def test_a_new_head_is_found_by_its_name(monkeypatch):
    monkeypatch.setitem(heads.HEADS, "same", heads.HEADS["gda"])
    one, other = (kh.tune("toy:", "toy:", method=f"head:{name}", budget=5) for name in ("same", "gda"))
    assert replace(one.artifact, meta={}).digest == replace(other.artifact, meta={}).digest


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_twenty_places_are_where_the_page_says():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", PAGE, re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 21))
    for _, change, places in rows:
        named = re.findall(r"`([^`]+)`", places)
        assert named, change
        for place in named:
            assert (ROOT / place).exists(), f"{change}: {place}"


def test_rooms_are_rooms():
    """At most 400 lines, no drawer for odds and ends."""
    for package in ("engine", "tuning", "serve", "keyhole", "bench", "miniature"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
            assert path.stem not in ("utils", "helpers", "base", "common", "manager", "misc"), path
