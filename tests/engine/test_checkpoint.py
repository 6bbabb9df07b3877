"""Checkpoints on disk: what goes in comes out to the bit, costs no memory, and nothing damaged comes out at all."""

import gc
import hashlib
import json
import tracemalloc
import weakref

import numpy as np
import pytest
from mutations import mutated_bytes

from engine import search
from engine.checkpoint import SHARE, Checkpoint, Like, arrays_like, load_state, save_state, whole_number
from engine.errors import ArtifactError
from engine.protocols import Feedback, Outputs
from engine.search_space import Space


def test_state_keeps_nesting_bits_and_types(tmp_path):
    state = {
        "step": 3,
        "losses": np.array([np.nan, 1.5]),
        "search": {"theta": np.arange(4, dtype=np.float32), "rng": {"words": [1, 2**62], "name": "PCG64"}},
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(0.1),
        "turned": np.arange(6).reshape(2, 3).T,
        "flags": np.array([True, False]),
        "best": None,
        "infinite": float("inf"),
        "numpy": np.float64(0.1),
    }
    save_state(tmp_path / "state", state)
    loaded = load_state(tmp_path / "state")
    for name in ("losses", "empty", "scalar", "turned", "flags"):
        read, wrote = loaded.pop(name), state.pop(name)
        assert (read.dtype, read.shape) == (wrote.dtype, wrote.shape)
        np.testing.assert_array_equal(read, wrote)
    theta = loaded["search"].pop("theta")
    assert theta.dtype == np.float32 and theta.tolist() == [0, 1, 2, 3]
    state["search"].pop("theta")
    assert loaded == state
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_half_written_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "state"
    save_state(path, {"a": np.arange(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="remove it to start anew"):
        load_state(path)


def test_damage_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "state"
    save_state(path, {"step": 3, "a": np.arange(20.0), "b": {"c": np.arange(3, dtype=np.float32), "d": [None, "x"]}})
    whole, random = path.read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        kind, data = mutated_bytes(whole, random)
        path.write_bytes(data)
        try:
            state = load_state(path)
        except ArtifactError as error:
            assert "remove it to start anew" in str(error) and "\n" not in str(error), kind
        else:
            assert state["step"] == 3 and state["a"].tolist() == list(range(20)) and state["b"]["d"] == [None, "x"], (
                kind
            )


def test_what_only_claims_to_be_large_is_refused_at_once(tmp_path):
    header = b'{"a0":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8000000000000]}}'
    (tmp_path / "state").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ArtifactError, match="remove it"):
        load_state(tmp_path / "state")


def test_nesting_past_the_limit_is_refused(tmp_path):
    text = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    told = {"format": "1", "state": text, "sum": hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}
    header = json.dumps({"__metadata__": told}).encode()
    (tmp_path / "state").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="recursion.*remove it"):
        load_state(tmp_path / "state")


def test_an_array_of_objects_is_not_written(tmp_path):
    with pytest.raises(ArtifactError, match="only numbers"):
        save_state(tmp_path / "state", {"a": np.array([object()])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (None, "not a mapping"),
        ({}, "a is missing"),
        ({"a": np.zeros(2), "b": 1}, "'b' is unknown"),
        ({"a": [0.0, 0.0]}, "is a list"),
        ({"a": np.zeros(3)}, "expected"),
        ({"a": np.zeros((2, 1))}, "expected"),
        ({"a": np.zeros(2, np.float32)}, "expected"),
        ({"a": np.array([0, np.nan])}, "not finite"),
    ],
)
def test_a_state_of_another_shape_is_refused(state, says):
    with pytest.raises(ArtifactError, match=says):
        arrays_like(state, {"a": Like("float64", (2,))})


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "3", [3], float("nan"), float("inf"), 10**400])
def test_a_count_that_is_none_is_refused(value):
    with pytest.raises(ArtifactError, match="step"):
        whole_number(value, "step")


def test_a_dear_checkpoint_is_written_seldom(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("engine.checkpoint.time.monotonic", lambda: now[0])

    def slow(path, state):
        now[0] += 3.0

    monkeypatch.setattr("engine.checkpoint.save_state", slow)
    checkpoint = Checkpoint(tmp_path / "state", every_s=5.0)
    assert not checkpoint.due
    now[0] = 5.0
    assert checkpoint.due
    checkpoint.write({})
    now[0] = 8.0 + SHARE * 3.0 - 0.1
    assert not checkpoint.due
    now[0] += 0.2
    assert checkpoint.due


def table_search(classes=40, width=1000):
    """A `sketch` with a context per class and its memory full: hundreds of secants, tens of megabytes."""
    space = Space(dim=classes * width, parts=classes, moves=frozenset({"text"}))
    begun = search.make("sketch", {"k": 8, "memory": 32}).start(space, 1000, 1)
    random = np.random.default_rng(0)
    image, labels = random.standard_normal((80, 16), np.float32), np.arange(80) % classes
    into, codes = random.standard_normal((width, 16), np.float32), random.standard_normal((classes, 16), np.float32)
    for _ in range(16):
        thetas = begun.ask(100)
        text = np.tanh(thetas.reshape(len(thetas), classes, width) @ into / 30 + codes)
        text = (text / np.linalg.norm(text, axis=-1, keepdims=True)).astype(np.float32)
        outputs = Outputs(text=text, image=image[None], scale=1.0)
        losses = np.full(len(thetas), 1.0)
        begun.tell(thetas, Feedback(losses=losses, outputs=outputs, labels=labels))
    return begun


def test_writing_costs_no_memory_and_leaves_nothing_behind(tmp_path):
    """Without the cyclic collector: a state is not copied to be written, and none is kept alive afterwards."""
    begun = table_search()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        size = sum(array.nbytes for array in begun.state_dict().values())
        assert size > 15e6
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(3):
            save_state(tmp_path / "state", {"search": begun.state_dict()})
        after, peak = tracemalloc.get_traced_memory()
        assert peak - before < 0.1 * size and after - before < 0.02 * size
        loaded = load_state(tmp_path / "state")
        arrays = [weakref.ref(array) for array in loaded["search"].values()]
        del loaded
        assert not any(array() is not None for array in arrays)
        assert tracemalloc.get_traced_memory()[0] - before < 0.02 * size
    finally:
        tracemalloc.stop()
        gc.enable()
