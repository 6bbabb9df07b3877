"""deploy/ and the Dockerfile, as far as they can be checked without a cluster or a registry."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import yaml
from ray_node import ROOT, node

from engine.artifact import Artifact
from serve.app import build
from serve.limits import OPEN
from serve.running import RETRY

SERVICE = yaml.safe_load((ROOT / "deploy/rayservice.yaml").read_text())
CONFIGS = {
    "serve.yaml": yaml.safe_load((ROOT / "deploy/serve.yaml").read_text()),
    "rayservice.yaml": yaml.safe_load(SERVICE["spec"]["serveConfigV2"]),
}
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def dockerfile(instruction: str) -> list[str]:
    """Arguments of every such instruction."""
    return [line.partition(" ")[2].strip() for line in DOCKERFILE if line.startswith(instruction + " ")]


def groups() -> list[dict]:
    cluster = SERVICE["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.fixture
def watch(runs, tmp_path) -> Path:
    Artifact.load(runs["linear"]).save(tmp_path / "shapes")
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_the_application_is_built_from_the_config(name, watch):
    """Ray takes the file, `serve.app:build` its args, and all deployments that it changes are there."""
    from ray.serve._private.build_app import build_app
    from ray.serve.schema import ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(CONFIGS[name]).applications
    assert application.import_path == "serve.app:build"
    built = {one.name for one in build_app(build({**application.args, "watch": str(watch)}), name="x").deployments}
    assert {deployment.name for deployment in application.deployments} == built == {"keyhole", "encoder-0"}


def test_the_config_of_a_cluster_listens_on_loopback():
    assert CONFIGS["serve.yaml"]["http_options"]["host"] == "127.0.0.1"


def test_pods_run_the_pinned_ray_and_ask_for_keys():
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert SERVICE["spec"]["rayClusterConfig"]["rayVersion"] == pins["ray"]
    assert f"rayproject/ray:{pins['ray']}-py311" in dockerfile("ARG")[0]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        (keys,) = [entry for entry in container["env"] if entry["name"] == "KEYHOLE_API_KEYS"]
        assert "optional" not in keys["valueFrom"]["secretKeyRef"] and "value" not in keys
        assert container["image"] == f"keyhole:{version}"
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_every_mount_has_its_volume_and_artifacts_are_read_only():
    for group in groups():
        spec = group["template"]["spec"]
        mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
        assert mounts["artifacts"]["mountPath"] == CONFIGS["rayservice.yaml"]["applications"][0]["args"]["watch"]
        assert mounts["artifacts"]["readOnly"] is True
        assert [mounts["models"]["mountPath"]] == dockerfile("VOLUME")


def test_probes_ask_what_answers_without_a_key(serving, runs):
    client = serving(shapes=runs["linear"])
    probes = [
        (probe["httpGet"], container)
        for group in groups()
        for container in group["template"]["spec"]["containers"]
        for key, probe in container.items()
        if key.endswith("Probe")
    ]
    assert probes
    for asked, container in probes:
        assert asked["path"] in OPEN and client.get(asked["path"]).status_code == 200
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports[asked["port"]] == CONFIGS["rayservice.yaml"]["http_options"]["port"]


def test_the_upgrade_moves_traffic_in_steps():
    upgrade = SERVICE["spec"]["upgradeStrategy"]
    assert (SERVICE["apiVersion"], SERVICE["kind"]) == ("ray.io/v1", "RayService")
    assert upgrade["type"] == "NewClusterWithIncrementalUpgrade"
    options = upgrade["clusterUpgradeOptions"]
    # What KubeRay refuses: none of these, no Gateway, or a cluster that does not scale.
    assert options.keys() == {"gatewayClassName", "stepSizePercent", "intervalSeconds", "maxSurgePercent"}
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100 and options["intervalSeconds"] > 0
    assert SERVICE["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_the_image_holds_every_package_and_runs_as_nobody_special():
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [word for line in dockerfile("COPY") for word in shlex.split(line)[1:-1]]
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in allowed, f"{path} does not reach the builder"
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} <= set(copied)
    assert dockerfile("USER")[-1] not in ("root", "0")


def test_the_images_ray_is_set_as_the_commands():
    words = [word for line in dockerfile("ENV") for word in shlex.split(line)]
    settings = dict(word.split("=", 1) for word in words)
    assert RETRY.items() <= settings.items() and settings["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


def test_the_images_command_is_one(command):
    program, *words = json.loads(dockerfile("CMD")[0])
    code, out, _ = command(words[0], "--help")
    assert program == "keyhole" and code == 0
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", out))


@pytest.mark.slow
def test_serve_deploy_of_the_file(watch, photo):
    """The command that docs/serving.md tells, on a node of this machine; folder and port are the test's."""
    home = Path(f"/tmp/y{os.getpid() % 10000}-{time.monotonic_ns() % 10000}")
    home.mkdir()
    try:
        with node(home, haproxy=False) as made:
            config = json.loads(json.dumps(CONFIGS["serve.yaml"]))
            config["http_options"]["port"] = made.port
            config["applications"][0]["args"]["watch"] = str(watch)
            (home / "serve.yaml").write_text(yaml.safe_dump(config))
            program = Path(sys.executable).with_name("serve")
            done = subprocess.run(
                [program, "deploy", "-a", made.dashboard, home / "serve.yaml"],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            replicas = made.settle("keyhole", lambda found: len(found["keyhole"]) == 2)
            assert len(replicas["encoder-0"]) == 1
            request = urllib.request.Request(f"http://127.0.0.1:{made.port}/models/shapes", photo())
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert len(json.loads(answer.read())) == len(Artifact.load(watch / "shapes").meta["classes"])
        assert made.processes() == {}
    finally:
        shutil.rmtree(home, ignore_errors=True)
