"""`keyhole serve` as a process: it answers, survives a replica's death, and leaves nothing behind."""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from engine.classifier import Classifier

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@contextmanager
def served(*words: str, home: Path):
    """A running `keyhole serve ... --json`, once it answers; its port, its process and what it said."""
    port = free_port()
    environ = {**os.environ, "RAY_TMPDIR": str(home), "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    with (home / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "keyhole", "serve", *words, "--port", str(port), "--json"],
            stdout=subprocess.PIPE, stderr=err, text=True, env=environ, cwd=ROOT,
        )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line, (home / "err").read_text()
        yield port, process, json.loads(line)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def ask(port: int, path: str, body: bytes | None = None):
    """Status and JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def ours(home: Path) -> dict[int, str]:
    """Processes that the server of this folder started: process -> its title."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAY_TMPDIR={home}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return {pid: title for pid, title in found.items() if title}


def listening(home: Path) -> list[tuple[str, str]]:
    """Title of a server's process, and an IPv4 address at which it listens."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    at = {row[9]: socket.inet_ntoa(bytes.fromhex(row[1][:8])[::-1]) for row in rows if row[3] == "0A"}
    found = []
    for pid, title in ours(home).items():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
            found += [(title, at[inode])] if inode in at else []
    return found


@pytest.fixture
def home() -> Path:
    """A short path: Ray's sockets lie below."""
    folder = Path(f"/tmp/k{os.getpid() % 10000}-{time.monotonic_ns() % 10000}")
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_leaves_nothing(runs, photo, home, number):
    image = photo()
    with served(str(runs["digits"]), f"pets={runs['words']}", home=home) as (port, process, facts):
        assert facts == {"url": f"http://127.0.0.1:{port}", "artifacts": ["digits", "pets"], "watch": None}
        for name, kind in (("digits", "digits"), ("pets", "words")):
            status, answer = ask(port, f"/models/{name}", image)
            _, probabilities = Classifier.load(runs[kind]).predict(image)
            assert status == 200
            np.testing.assert_allclose([row["score"] for row in answer], np.sort(probabilities[0])[::-1], atol=1e-5)
        assert ask(port, "/models/nobody", image)[0] == 404
        assert {address for title, address in listening(home) if "haproxy" in title} == {"127.0.0.1"}
        process.send_signal(number)
        assert process.wait(120) == 130  # on a busy machine Ray takes its time
    deadline = time.monotonic() + 10
    while (left := ours(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == {}


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_no_request(runs, photo, home):
    """Two boxes, two encoders each, behind a gateway; under keep-alive load one encoder dies."""
    image, told = photo(), collections.Counter()
    words = (str(runs["digits"]), f"shapes={runs['shared-context']}", "--replicas", "2")
    with served(*words, home=home) as (port, _, _):
        until = time.monotonic() + 8

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while time.monotonic() < until:
                connection.request("POST", "/models/digits", image, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                told[answer.status, answer.read()] += 1

        clients = [threading.Thread(target=client) for _ in range(8)]
        for thread in clients:
            thread.start()
        time.sleep(2)
        victims = [pid for pid, title in ours(home).items() if "encoder-0" in title]
        os.kill(victims[0], signal.SIGKILL)
        for thread in clients:
            thread.join()
    assert len(victims) == 2 and {status for status, _ in told} == {200} and sum(told.values()) > 50
    tables = [sorted((row["label"], row["score"]) for row in json.loads(body)) for _, body in told]
    scores = np.array([[score for _, score in table] for table in tables])
    np.testing.assert_allclose(scores, scores[:1].repeat(len(scores), 0), atol=1e-5)  # bits depend on the batch


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nothing to serve"),
        (("nowhere",), "holds no keyhole.json"),
        (("--watch", "nowhere"), "is no folder"),
        (("--replicas", "0"), "--replicas"),
        (("--replicas", "3-2"), "MIN-MAX"),
        (("--keys", "nowhere"), "keys"),
        (("a b=nowhere",), "nowhere"),
    ],
)
def test_mistakes_are_one_sentence(command, runs, words, sentence):
    code, _, err = command("serve", *(words if words[:1] != ("--replicas",) else (str(runs["digits"]), *words)))
    assert code == 2 and sentence in err and "Traceback" not in err


def test_a_taken_port_is_told_at_once(command, runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = command("serve", str(runs["digits"]), "--port", str(taken.getsockname()[1]))
    assert code == 2 and "name another --port" in err


def test_two_runs_of_one_name_are_asked_for_another(command, runs, tmp_path):
    code, _, err = command("serve", str(runs["digits"]), str(runs["digits"]))
    assert code == 2 and "write NAME=" in err
