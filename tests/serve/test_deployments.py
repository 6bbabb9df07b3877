"""The application on Ray Serve: built from a config file's arguments, changed in place by `user_config`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import urllib.request
from pathlib import Path

import pydantic
import pytest

from engine.artifact import Artifact
from engine.errors import ArtifactError, RecipeError
from serve.app import build


def replicas() -> set[int]:
    """Processes of this machine's encoders that this test's Ray has started."""
    mark = f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if b"ServeReplica:told:" in title and mark in (folder / "environ").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_artifacts_and_traffic_change_in_place(ray_local, runs, photo):
    from ray import serve as ray_serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    old, new = (Artifact.load(runs[kind]).digest[:12] for kind in ("shared-context", "linear"))
    both = {"shapes": [str(runs["shared-context"]), str(runs["linear"])]}

    def state() -> dict[str, str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/artifacts", timeout=30) as answer:
            return {offer["name"]: offer["live"] for offer in json.loads(answer.read())["artifacts"]}

    def deploy(**directions) -> None:
        """What `serve deploy` does with a config file."""
        told = [{"name": name, "user_config": directions} for name in ("encoder-0", "keyhole") if directions]
        application = {"name": "told", "import_path": "serve.app:build", "deployments": told}
        application["args"] = {"hops": 2, "artifacts": both}
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def await_state(wanted: dict[str, str]) -> None:
        until = time.monotonic() + 40
        found = None
        while found != wanted and time.monotonic() < until:
            time.sleep(0.1)
            with contextlib.suppress(OSError):  # there is no route yet
                found = state()
        assert found == wanted

    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy()
        await_state({"shapes": new})
        before = replicas()
        deploy(artifacts=both, traffic={"shapes": {"live": old}})
        await_state({"shapes": old})
        deploy(artifacts={**both, "more": [str(runs["tip"])]})
        await_state({"shapes": new, "more": Artifact.load(runs["tip"]).digest[:12]})
        request = urllib.request.Request(f"http://127.0.0.1:{port}/models/more", photo())
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.loads(answer.read())) == 5
        assert len(before) == 2 and replicas() == before, "no replica was started anew"
    finally:
        ray_serve.shutdown()


def test_settings_that_cannot_be_are_refused(runs):
    shapes, digits = str(runs["linear"]), str(runs["digits"])
    with pytest.raises(pydantic.ValidationError, match="artefacts"):
        build({"artefacts": {}})
    with pytest.raises(ArtifactError, match="nothing to serve"):
        build({})
    with pytest.raises(RecipeError, match="hops=1"):
        build({"artifacts": {"a": [shapes], "b": [digits]}, "hops": 1})


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({}, ["keyhole"]),
        ({"replicas": "2"}, ["encoder-0", "keyhole"]),
        ({"hops": 2}, ["encoder-0", "keyhole"]),
        ({"hops": 1, "replicas": "1-4"}, ["keyhole"]),
    ],
)
def test_hops(runs, args, names):
    """One box with one replica answers HTTP itself; otherwise a gateway does."""
    from ray.serve._private.build_app import build_app

    built = build_app(build({"artifacts": {"a": [str(runs["linear"])]}, **args}), name="x")
    assert sorted(deployment.name for deployment in built.deployments) == names
    if args.get("replicas") == "1-4":
        assert built.deployments[0]._deployment_config.autoscaling_config.max_replicas == 4
