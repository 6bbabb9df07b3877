"""Comparisons on a Ray that is already running: by its address, and inside a submitted job."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from engine.boxes.toy import toy_task
from engine.errors import BoxError, RecipeError
from tuning.compare.tune_runner import Cluster, Connected

COMMAND = [sys.executable, "-m", "keyhole", "compare", "comparison.yaml"]


@pytest.fixture
def head():
    """The ports of a cluster that lives for one test, in processes of its own: of the GCS and of the dashboard."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port",
             "dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
    home = tempfile.mkdtemp(prefix="kh")  # short: Ray's sockets lie in it
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={home}",
         "--include-dashboard=true", "--object-store-memory=200000000", "--disable-usage-stats",
         *(f"--{name}={port}" for name, port in zip(names, ports, strict=True))],
        env={**os.environ, "RAY_TMPDIR": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        process.send_signal(signal.SIGTERM)  # with --block it ends all that it started
        process.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def here(tmp_path):
    """A folder with a comparison on a task that lies beside it, named by a relative path."""
    from PIL import Image

    task = toy_task(train=6, val=4, test=10)
    for split in ("train", "val", "test"):
        part = getattr(task, split)
        for row, label in enumerate(part.labels.tolist()):
            folder = tmp_path / "here" / "data" / split / task.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(part.source.read([row])[0]).save(folder / f"{row}.png")
    (tmp_path / "here" / "comparison.yaml").write_text(
        "tasks: ['folder:data']\nboxes: ['toy:']\nmethods: [zero-shot, momentum]\nseeds: [1]\nshots: 2\nbudget: 20\n"
    )
    return tmp_path / "here"


def accuracies(out: Path) -> list[tuple[str, str, str]]:
    with open(out / "results.csv", encoding="utf-8") as file:
        return [(row["label"], row["accuracy"], row["error"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_on_a_running_cluster_by_address_and_as_a_job(head, here, tmp_path):
    from ray.job_submission import JobSubmissionClient

    address, dashboard = head
    subprocess.run([*COMMAND, "--parallel", "0", "--out", tmp_path / "alone"], cwd=here, check=True)
    expected = accuracies(tmp_path / "alone")
    assert [(label, error) for label, _, error in expected] == [("zero-shot", ""), ("momentum", "")]

    deadline = time.monotonic() + 120
    while True:  # until the dashboard, the last to start, takes jobs
        try:
            client = JobSubmissionClient(dashboard)
            break
        except (ConnectionError, RuntimeError):
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(0.5)
    subprocess.run([*COMMAND, "--address", address, "--out", tmp_path / "address"], cwd=here, check=True, timeout=120)
    assert accuracies(tmp_path / "address") == expected

    # As `ray job submit --working-dir here -- keyhole compare ...`: the job finds its cluster by itself.
    entrypoint = " ".join([*COMMAND, "--out", str(tmp_path / "job")])
    job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(here)})
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline + 120:
        time.sleep(0.5)
    assert client.get_job_info(job).driver_exit_code == 0, client.get_job_logs(job)
    assert accuracies(tmp_path / "job") == expected


def test_an_address_where_nobody_is(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have connected this process
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(BoxError, match="refused.*--address"), Connected(Cluster(address=f"127.0.0.1:{port}")):
        pass
    for address, advice in ((f"ray://127.0.0.1:{port}", "submit"), ("head", "HOST:PORT")):
        with pytest.raises(RecipeError, match=advice), Connected(Cluster(address=address)):
            pass
    assert time.monotonic() - started < 10
