"""`keyhole bench serve`: images per CPU-second of a server, beside the bare model and other ways to serve.

The bare model decodes and encodes batches of as many images in one thread of this process. It takes turns with each
server, and a ratio is the median over the turns; CPU time is that of all processes of a server, Ray's own included, so
that neighbours on the machine disturb it little. Latencies are wall-clock: they mean what they say on a quiet machine.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.entry import Bench, Parser, header, line, numbers
from bench.serving import material
from bench.serving.load import Heard, closed_loop, middle, open_loop
from bench.serving.ways import WAYS, Server, started
from engine.artifact import Artifact
from engine.errors import BoxError, RecipeError
from engine.threads import limited
from tuning.compare.comparison import split_list

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bare:
    """The box itself in this process: decode and encode, in one thread."""

    box: Any
    images: Sequence[bytes]

    def turn(self, count: int, seconds: float) -> dict[str, float]:
        """Batches of `count` images for a while: CPU and wall milliseconds, of an image and of a batch."""
        from engine.images import Encoded

        rows = [Encoded(self.images[place % len(self.images)], "the image") for place in range(count)]
        walls = []
        with limited(1):
            cpu, until = time.process_time(), time.perf_counter() + seconds
            while not walls or time.perf_counter() < until:
                begin = time.perf_counter()
                self.box.encode(self.box.pixels(rows))
                walls.append(time.perf_counter() - begin)
            cpu = time.process_time() - cpu
        return {"cpu_ms": 1e3 * cpu / len(walls) / count, "wall_ms": 1e3 * statistics.median(walls)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The numbers of every way, as plain JSON values."""
    _read(given)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("bench").setLevel(logging.INFO)
    from keyhole import load_box, load_task

    task = load_task(given.task, shots=1)
    box: Any = load_box(given.box, task)
    images = material.encoded(task.test.source.read(range(min(64, len(task.test)))), box.spec.image_size)
    bare = Bare(box, images)
    rows: list[dict[str, Any]] = []
    arrivals, first = [], {}
    with tempfile.TemporaryDirectory() as folder:
        homes = {count: Path(folder, str(count)) for count in given.artifacts}
        for count, home in homes.items():
            material.artifacts(given.box, given.task, home, count)
        for way in given.ways:
            counts = given.artifacts if way == "in-process" else given.artifacts[:1]
            with ExitStack() as stack:
                servers = [stack.enter_context(started(way, homes[count], count, images[0])) for count in counts]
                first[way] = servers[0].first_answer_s
                told = list(_closed(given, bare, servers))
                if reached := [row["images_a_second"] for row in told if row["images"] == 1]:
                    told += _open(given, bare, servers[0], max(reached))
                rows += told
                if way != "plain":
                    arrivals.append(_arrival(given, servers[-1], images))
            _log.info("%s: measured", way)
    about = {"box": given.box, "image_bytes": round(statistics.mean(map(len, images)))}
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[1]}
    return {**about, **machine, "first_answer_s": first, "rows": rows, "new": arrivals}


def _read(given: argparse.Namespace) -> None:
    """Lists from words, and the small size. Raises RecipeError for what cannot be measured."""
    if given.quick:
        given.ways, given.images, given.clients, given.loads = "in-process,plain", "1,32", "2", "0.5"
        given.artifacts, given.seconds, given.turns = "3", 0.4, 1
    given.ways = split_list(given.ways)
    for way in given.ways:
        if way not in WAYS:
            raise RecipeError(f"{way!r} is no way to serve; --ways takes {', '.join(WAYS)}")
    for name, kind in (("images", int), ("clients", int), ("loads", float), ("artifacts", int)):
        setattr(given, name, found := numbers(getattr(given, name), kind))
        if not found or min(found) <= 0:
            raise RecipeError(f"--{name}: positive numbers divided by commas")
    if given.seconds <= 0 or given.turns < 1:
        raise RecipeError("--seconds and --turns are positive")
    if not Path("/proc/self/environ").exists():
        raise RecipeError("CPU time of a server's processes is read from /proc, which this system does not have")


def _closed(given: argparse.Namespace, bare: Bare, servers: Sequence[Server]) -> Iterator[dict[str, Any]]:
    """Closed loops: each number of images a request and of clients, the servers and the bare model in turns."""
    for count in given.images if servers[0].way != "plain" else [1]:
        for clients in given.clients:
            turns: list[list[dict[str, Any]]] = [[] for _ in servers]
            for _ in range(given.turns):
                alone = bare.turn(count, given.seconds / 2)
                for server, found in zip(servers, turns, strict=True):
                    asked = material.requests(server.way, count, server.artifacts, bare.images)
                    ask = partial(closed_loop, server.port, asked, clients=clients, seconds=given.seconds)
                    told = _turn(server, count, ask)
                    told["of_bare"] = alone["cpu_ms"] / told["cpu_ms"]
                    told["added_ms"] = told["p50_ms"] - alone["wall_ms"]
                    found.append(told)
            for server, found in zip(servers, turns, strict=True):
                for one, first in zip(found, turns[0], strict=True):
                    one["of_first"] = first["cpu_ms"] / one["cpu_ms"]
                yield {**_about(server, count), "loop": "closed", "clients": clients, **middle(found)}


def _open(given: argparse.Namespace, bare: Bare, server: Server, reached: float) -> Iterator[dict[str, Any]]:
    """Arrivals of single images, at fractions of the requests a second that the closed loops reached."""
    asked = material.requests(server.way, 1, server.artifacts, bare.images)
    for fraction in given.loads:
        ask = partial(open_loop, server.port, asked, rate=fraction * reached, seconds=given.seconds)
        turns = [_turn(server, 1, partial(ask, seed=turn)) for turn in range(given.turns)]
        yield {**_about(server, 1), "loop": f"open, {fraction:.0%}", "clients": None, **middle(turns)}


def _turn(server: Server, count: int, ask: Callable[[], Heard]) -> dict[str, Any]:
    """What clients heard, and the server's CPU milliseconds an image."""
    before = server.cpu_s()
    heard = ask()
    spent = sum(after - before.get(process, 0.0) for process, after in server.cpu_s().items())
    if not heard.seconds:
        raise BoxError(f"{server.way}: no request was answered; the codes were {dict(heard.codes)}")
    images = count * len(heard.seconds)
    return {**heard.facts(), "images_a_second": images / heard.wall_s, "cpu_ms": 1e3 * spent / images}


def _about(server: Server, count: int) -> dict[str, Any]:
    return {"way": server.way, "artifacts": server.artifacts, "images": count}


def _arrival(given: argparse.Namespace, server: Server, images: Sequence[bytes]) -> dict[str, Any]:
    """A new artifact while eight clients ask for others: seconds from its file to its first answer, and what failed."""
    fresh = material.variant(Artifact.load(server.folder / "bench-0"), seed=2**31)
    others = material.requests(server.way, 1, server.artifacts, images)
    (asked,) = set(material.requests(server.way, 1, 1, images[:1]))
    name = f"new-{server.way}"
    asked = asked.replace(b"bench-0", name.encode())
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(closed_loop, server.port, others, clients=8, seconds=4.0)
        time.sleep(1.0)
        fresh.save(server.folder / name)
        begin = time.perf_counter()
        while closed_loop(server.port, [asked], clients=1, seconds=0.0).codes[200] == 0:
            if time.perf_counter() - begin > given.patience:
                raise BoxError(f"{server.way}: the new artifact is not served after {given.patience:.0f} s")
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        return {**_about(server, 1), "seconds": seconds, "failed": load.result().facts()["failed"]}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    columns = (
        *("served", "artifacts", "images a request", "load", "images/s", "CPU ms an image", "of the bare model"),
        *("of one artifact", "p50 / p95 / p99 ms", "failed"),
    )
    lines = [
        f"`{found['box']}`, images of {found['image_bytes']} bytes, {found['cpus']} CPUs, load {found['load']:.0f}.",
        "",
        header(*columns),
    ]
    for row in found["rows"]:
        clients = row["clients"]
        ratios = (f"{row[name]:.0%}" if name in row else "" for name in ("of_bare", "of_first"))
        lines.append(
            line(
                *(row["way"], row["artifacts"], row["images"]),
                row["loop"] if clients is None else f"{clients} client{'s' * (clients > 1)}",
                *(f"{row['images_a_second']:.0f}", f"{row['cpu_ms']:.2f}", *ratios),
                " / ".join(f"{row[f'p{rank}_ms']:.1f}" for rank in (50, 95, 99)),
                sum(row["failed"].values()),
            )
        )
    lines += ["", header("served", "first answer, s", "added at one client, median ms", "a new artifact answers, s")]
    for way, seconds in found["first_answer_s"].items():
        added = [r["added_ms"] for r in found["rows"] if (r["way"], r["clients"], r["images"]) == (way, 1, 1)]
        new = [f"{r['seconds']:.1f}, {sum(r['failed'].values())} failed" for r in found["new"] if r["way"] == way]
        lines.append(line(way, f"{seconds:.1f}", f"{added[0]:.1f}" if added else "", "".join(new)))
    return "\n".join(lines)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--task", default="mini:digits")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"of {', '.join(WAYS)}")
    parser.add_argument("--images", default="1,32", help="images of a request")
    parser.add_argument("--clients", default="1,8,32", help="of the closed loops")
    parser.add_argument("--loads", default="0.5,0.8", help="arrivals, as fractions of what the closed loops reach")
    parser.add_argument("--artifacts", default="1,1000", help="all in process, elsewhere the first number")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for a new artifact")
    parser.add_argument("--quick", action="store_true", help="one short turn of few cases")


BENCH = Bench(settings=settings, measure=measure, table=table)
