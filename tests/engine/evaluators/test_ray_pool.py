import os
import signal
import socket
import time

import numpy as np
import pytest
from faults import SIGNAL

from engine.boxes.toy import toy_task
from engine.errors import BoxError, RecipeError
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.ray_pool import RayPool
from engine.evaluators.ray_start import connect
from engine.evaluators.serial import Serial

pytestmark = pytest.mark.ray


def spec(fault: str = "text", folder: str = "full") -> ProblemSpec:
    task = toy_task()
    return ProblemSpec(
        box="toy:",
        classes=task.classes,
        template=task.template,
        splits={"train": task.train, "val": task.val, "test": task.test},
        prompt={"name": fault, "subspace": folder},
    )


def candidates(count: int = 13, signal_at: int | None = None) -> np.ndarray:
    dim = Serial(spec()).describe()[1].dim
    thetas = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    if signal_at is not None:
        thetas[signal_at, 0] = SIGNAL
    return thetas


def same(reply, other) -> None:
    assert reply.losses.tobytes() == other.losses.tobytes()
    assert reply.correct.tolist() == other.correct.tolist()
    assert reply.pairs == other.pairs


@pytest.fixture
def pool_of(ray_local):
    pools = []

    def make(workers, problem=None, **settings):
        pools.append(RayPool(problem or spec(), workers, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_same_bits_for_any_number_of_workers(pool_of, workers):
    thetas, rows = candidates(), np.array([1, 5, 2])
    serial, pool = Serial(spec(), chunk=4), pool_of(workers, chunk=4)
    same(pool.evaluate(thetas), serial.evaluate(thetas))
    same(pool.evaluate(thetas, rows), serial.evaluate(thetas, rows))
    same(pool.evaluate(thetas[:1], split="val"), serial.evaluate(thetas[:1], split="val"))
    table, other = pool.evaluate(thetas, table=True), serial.evaluate(thetas, table=True)
    assert table.outputs.logits().tobytes() == other.outputs.logits().tobytes()
    assert pool.fingerprint()["canary"] == serial.fingerprint()["canary"]
    assert pool.describe()[1] == serial.describe()[1]


def test_a_killed_worker_costs_a_retry_and_nothing_else(pool_of):
    pool, thetas = pool_of(2, chunk=2), candidates()
    before = pool.evaluate(thetas)
    os.kill(pool.pids()[0], signal.SIGKILL)
    after = pool.evaluate(thetas)
    same(after, before)
    assert after.retries >= 1 and before.retries == 0
    assert len(pool.pids()) == 2


def test_a_worker_that_dies_in_a_call_is_replaced(pool_of, tmp_path):
    pool, thetas = pool_of(2, spec("faults:dies_once", str(tmp_path)), chunk=4), candidates(signal_at=5)
    reply = pool.evaluate(thetas)
    thetas[5, 0] = 0.5
    same(reply, Serial(spec(), chunk=4).evaluate(thetas))
    assert reply.retries >= 1


def test_a_worker_that_hangs_is_replaced_after_the_time_limit(pool_of, tmp_path):
    pool, thetas = pool_of(2, spec("faults:hangs_once", str(tmp_path)), chunk=4, timeout_s=3), candidates(signal_at=0)
    pool.evaluate(candidates())  # both workers are open
    started = time.monotonic()
    reply = pool.evaluate(thetas)
    assert time.monotonic() - started < 60
    assert reply.retries + reply.duplicates >= 1 and np.isfinite(reply.losses).all()


def test_a_straggler_is_overtaken(pool_of, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.evaluators.ray_pool.STRAGGLER_S", 1.0)
    pool, thetas = pool_of(2, spec("faults:hangs_once", str(tmp_path)), chunk=4), candidates(signal_at=0)
    pool.evaluate(candidates())  # both workers are open
    reply = pool.evaluate(thetas)
    assert reply.duplicates >= 1 and reply.retries == 0
    thetas[0, 0] = 0.5
    same(reply, Serial(spec(), chunk=4).evaluate(thetas))
    same(pool.evaluate(candidates()), Serial(spec(), chunk=4).evaluate(candidates()))  # one of the two still hangs


def test_a_chunk_that_kills_every_worker_ends_in_words(pool_of, tmp_path):
    pool = pool_of(1, spec("faults:dies_always", str(tmp_path)))
    with pytest.raises(BoxError, match="4 workers in a row were lost"):
        pool.evaluate(candidates(signal_at=0))


def test_errors_of_the_user_and_of_the_code_come_back(pool_of, tmp_path):
    with pytest.raises(RecipeError, match="^this is the user's own mistake$"):
        pool_of(1, spec("faults:user_error", str(tmp_path))).evaluate(candidates(signal_at=0))
    with pytest.raises(BoxError, match="a bug"):
        pool_of(1, spec("faults:bug", str(tmp_path))).evaluate(candidates(signal_at=0))
    with pytest.raises(RecipeError, match="no.such"):
        pool_of(1, spec("no.such:prompt"))


def test_workers_that_differ_do_not_mix(pool_of):
    pool = pool_of(1)
    pool._identity = {**pool.fingerprint(), "torch": "another"}
    pool._hire()
    with pytest.raises(BoxError, match=r"workers differ in \{'torch'"):
        pool.evaluate(candidates(40))
    mixed = pool_of(1, mixed=True)
    mixed._identity = {**mixed.fingerprint(), "torch": "another"}
    assert np.isfinite(mixed.evaluate(candidates()).losses).all()


def test_more_than_the_cluster_has_is_refused_in_words(ray_local, monkeypatch):
    monkeypatch.setattr("engine.evaluators.ray_pool.OPENING_S", 2.0)
    with pytest.raises(BoxError, match="no worker was ready within 2 s"):
        RayPool(spec(), 1, cpus=64)


def test_closed_pools_leave_no_worker(ray_local):
    pool = RayPool(spec(), 2)
    pids = pool.pids()
    pool.close()
    for _ in range(50):
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return
        time.sleep(0.1)
    raise AssertionError(f"workers {pids} are still there")


def test_an_address_without_a_cluster_is_said_at_once(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    for told in (address, f"ray://{address}"):
        monkeypatch.setenv("RAY_ADDRESS", told)
        with pytest.raises(BoxError, match="no Ray at .*RAY_ADDRESS"):
            connect(1, 1.0)
    monkeypatch.setenv("RAY_ADDRESS", "head")
    with pytest.raises(RecipeError, match="HOST:PORT"):
        connect(1, 1.0)
