"""The serving bench: it counts what servers spend, hears every failure, and its table says so."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from bench.serving import load, material
from bench.serving.ways import MARK, Server


class Slow(socketserver.StreamRequestHandler):
    """Answers after 20 ms, one request at a time, every fifth with 429; the path /gone hangs up."""

    turn = threading.Lock()
    served = 0

    def handle(self) -> None:
        while head := self.rfile.readline():
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            if b"/gone" in head:
                return
            with Slow.turn:
                time.sleep(0.02)
                Slow.served += 1
                status = b"429 Busy" if Slow.served % 5 == 0 else b"200 OK"
            self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")


@pytest.fixture
def slow():
    Slow.served = 0
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_clients_of_a_closed_loop_wait_for_each_other(slow):
    asked = [load.written("/", b"x" * 10, "image/png")]
    alone, four = (load.closed_loop(slow, asked, clients=clients, seconds=0.5).facts() for clients in (1, 4))
    assert alone["p50_ms"] >= 20 and four["p50_ms"] > 2.5 * alone["p50_ms"], "the server takes one at a time"
    assert alone["requests"] + four["requests"] == Slow.served
    assert sum(told["failed"]["429"] for told in (alone, four)) == Slow.served // 5


def test_arrivals_do_not_wait_for_answers(slow):
    """At twice what the server can do, the queue grows and latencies with it: counted from the arrival."""
    heard = load.open_loop(slow, [load.written("/", b"", "image/png")], rate=100.0, seconds=0.6, seed=1)
    assert heard.codes == {200: 48, 429: 12} and len(heard.seconds) == 48 and max(heard.seconds) > 0.4
    assert np.mean(heard.seconds[-10:]) > 3 * np.mean(heard.seconds[:10])


def test_a_connection_that_breaks_is_a_failure(slow):
    told = load.closed_loop(slow, [load.written("/gone", b"", "image/png")], clients=2, seconds=0.0).facts()
    assert told["failed"] == {"0": 2}


def test_cpu_time_is_of_all_processes_that_inherit_the_mark(tmp_path):
    """A shell that waits for its child: the child's seconds count."""
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ntime.sleep(30)"
    shell = ["sh", "-c", f"{sys.executable} -c '{busy}'; true"]
    process = subprocess.Popen(shell, stdout=subprocess.PIPE, env={**os.environ, MARK: "a"}, start_new_session=True)
    try:
        process.stdout.readline()
        one, other = (Server("plain", 1, 0, tmp_path, mark, 0.0).cpu_s() for mark in ("a", "b"))
        assert sum(one.values()) > 0.4 and len(one) == 2 and other == {}
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_requests_carry_their_images_to_all_artifacts():
    images = [b"first", b"second", b"third"]
    single = material.requests("in-process", 1, 2, images)
    assert single[0].endswith(images[0]) and b"/v1/models/bench-0/answers" in single[0] and b"bench-1" in single[1]
    many = json.loads(material.requests("haproxy", 4, 1, images)[0].partition(b"\r\n\r\n")[2])
    assert len(many["images"]) == 4 and many["images"][0] == many["images"][3]


def test_the_quick_size_measures_and_its_table_says_what_it_found(command):
    from bench.serving.command import table

    code, out, _ = command("bench", "serve", "--quick", "--json")
    found = json.loads(out)
    assert code == 0 and [row["failed"] for row in found["rows"]] == [{}] * len(found["rows"])
    closed = {(r["way"], r["images"], r["artifacts"]): r for r in found["rows"] if r["loop"] == "closed"}
    assert set(closed) == {("in-process", 1, 3), ("in-process", 32, 3), ("plain", 1, 3)}
    many, one = closed["in-process", 32, 3], closed["in-process", 1, 3]
    assert 0.3 < many["of_bare"] < 1.2 and many["cpu_ms"] < one["cpu_ms"], "a batch is cheaper an image"
    assert found["new"][0]["failed"] == {} and found["new"][0]["seconds"] < 10
    assert f"| in-process | 3 | 32 | 2 clients | {many['images_a_second']:.0f} |" in table(found)


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["--ways", "nginx"], "in-process"), (["--clients", "0"], "positive"), (["--turns", "0"], "positive")],
)
def test_what_cannot_be_measured_is_a_mistake(command, words, hint):
    code, _, err = command("bench", "serve", *words)
    assert code == 2 and hint in err
