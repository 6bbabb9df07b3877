"""Methods by name: options, refusals, and what importing the registry may not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.errors import RecipeError
from engine.heads import HEADS
from engine.protocols import Needs
from engine.search import METHODS, describe, make
from engine.search.momentum import Momentum
from engine.tuning_loop import SearchMethod


def test_every_name_makes_a_method_whose_repr_is_its_configuration():
    for name in METHODS:
        method = make(name)
        assert isinstance(method.needs, Needs)
        assert method == make(name) and type(method).__name__ in repr(method)


def test_options_are_set_and_checked():
    assert make("momentum", {"k": 4, "radius": 1, "pairs": "never"}) == Momentum(k=4, radius=1.0, pairs="never")
    for wrong, words in [
        ({"radios": 0.1}, "did you mean 'radius'"),
        ({"k": 2.5}, "must be int"),
        ({"k": True}, "must be int"),
        ({"radius": "0.1"}, "must be float"),
        ({"pairs": 3}, "must be str"),
        ({"k": 0}, "at least 1"),
    ]:
        with pytest.raises(RecipeError, match=words):
            make("momentum", wrong)


def test_unknown_methods_are_refused():
    with pytest.raises(RecipeError, match="did you mean 'momentum'"):
        make("momentun")
    for name in ["no.such.module:Class", "engine.search.momentum:Nothing", "engine.search.momentum:", ":"]:
        with pytest.raises(RecipeError, match="cannot be loaded"):
            make(name)
    with pytest.raises(RecipeError, match="no option 'name'"):
        make("nevergrad:CMA", {"name": "DE"})


class Own(SearchMethod):
    """A method that is no dataclass."""

    def start(self, space, candidates, seed):
        raise NotImplementedError


def test_a_method_of_ones_own(monkeypatch):
    import types

    module = types.ModuleType("a_module_of_ones_own")
    module.Own, module.instance = Own, Momentum(k=3)
    monkeypatch.setitem(sys.modules, "a_module_of_ones_own", module)
    assert isinstance(make("a_module_of_ones_own:Own"), Own)
    with pytest.raises(RecipeError, match="takes no options"):
        make("a_module_of_ones_own:Own", {"k": 1})
    with pytest.raises(RecipeError, match="not a class"):
        make("a_module_of_ones_own:instance")
    assert make("engine.search.momentum:Momentum", {"k": 3}) == module.instance


def test_describe_lists_every_method():
    rows = {row["name"]: row for row in describe()}
    assert set(rows) == {*METHODS, "nevergrad:NAME", *(f"head:{name}" for name in HEADS), "ceiling:coop"}
    assert rows["momentum"]["options"]["k"] == Momentum().k
    assert rows["momentum"]["gives"] == ["features", "scores", "topk"]
    assert all(row["about"].endswith(".") or row["about"].endswith(":") for row in rows.values())


def test_the_registry_imports_nothing_heavy():
    code = (
        "import sys; import engine.search; engine.search.describe(); engine.search.make('momentum');"
        "print([name for name in ('torch', 'ray', 'nevergrad', 'cma', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
