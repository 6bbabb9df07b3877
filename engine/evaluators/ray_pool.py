"""Candidates are evaluated on Ray actors that hold the frozen encoder.

P candidates are cut into chunks by `chunk` alone, each is evaluated by itself and the replies are joined in order, as
in `serial.py`: the answer and the account are the same for any number of workers, also after workers died.
Knows nothing of search methods and of budgets.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import BoxError, KeyholeError, RecipeError
from engine.evaluators.problem import Problem, ProblemSpec, chunks_of, join
from engine.evaluators.ray_start import check_room, connect, keeping_sigterm
from engine.phases import phase
from engine.protocols import Array, BlackBox, BoxSpec, Reply
from engine.search_space import Space
from engine.threads import limited

log = logging.getLogger(__name__)

ATTEMPTS = 4
"""How many workers may be lost or late on one chunk before the run gives up on it."""
DEPTH = 2
"""Calls in flight per actor: one runs while the next is already there."""
OPENING_S = 600.0
"""How long a worker may take to start and to open the box, which may mean reading gigabytes of weights."""
STRAGGLER_S = 5.0
"""A chunk this late near a step's end is also given to an idle worker; the first answer counts."""
RAYLET_S = 3.0
"""Seconds between looks whether Ray itself still runs on this machine."""
QUICK_S = 0.02
"""Chunks answered faster than this travel together, one call a worker: a call itself takes a millisecond or two."""


class _Worker:
    """What an actor runs: a problem, built at the first call so that its errors come back as errors of that call."""

    def __init__(self, spec: ProblemSpec) -> None:
        self.spec = spec

    def open(self) -> dict[str, Any]:
        self.problem = Problem(self.spec)
        return self.call("fingerprint")

    def call(self, name: str, *args: Any) -> Any:
        with limited(self.spec.threads):
            return getattr(self.problem, name)(*args)

    def evaluate(self, parts: list[Array], bare: bool, *args: Any) -> list[Reply]:
        """A reply for each part; `bare`: without the images' features, which the driver has."""
        replies = [self.call("evaluate", part, *args) for part in parts]
        return [replace(each, outputs=replace(each.outputs, image=None)) for each in replies] if bare else replies

    def stage(self, split: str) -> None:
        with limited(self.spec.threads):
            self.problem.stage(split)

    def pid(self) -> int:
        return os.getpid()


@dataclass(eq=False)
class _Job:
    """One call of an actor's method, until it is answered."""

    method: str
    args: tuple[Any, ...]
    chunks: int = 1
    tries: int = 0
    copies: int = 0
    answer: Any = None
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Flight:
    """A job on its way to an actor."""

    actor: Any
    job: _Job
    sent: float
    deadline: float


class RayPool:
    """The evaluator of many processes: Ray actors that hold the frozen encoder.

    A lost or late worker's chunk is given to another, the worker is replaced, and nobody downstream notices but the
    `retries` of the account. Uses the Ray that is initialised, or RAY_ADDRESS, or starts a local one and ends it.

    Args:
        spec: the problem; every actor builds it for itself, weights mapped from the file that they share on a node.
        workers: number of actors.
        chunk: candidates evaluated together.
        cpus, gpus: Ray resources of an actor; fractions of a GPU are fine.
        timeout_s: time limit of one chunk, after which its worker is killed and replaced.
        mixed: accept workers whose fingerprints differ (then "the same bits" no longer holds).

    Raises BoxError if workers cannot be had, differ, or lose the same chunk again and again.
    """

    def __init__(
        self,
        spec: ProblemSpec,
        workers: int,
        *,
        chunk: int = 2,
        cpus: float = 1,
        gpus: float = 0,
        timeout_s: float = 600.0,
        mixed: bool = False,
    ) -> None:
        if workers < 1:
            raise RecipeError(f"workers={workers}: a pool has at least one; workers=0 runs in this process")
        if not isinstance(spec.box, str):
            raise RecipeError(
                f"workers={workers}: each opens its box by its URI, and {spec.uri} is an open one; use workers=0"
            )
        self.workers, self.spec = workers, spec
        self.box: BlackBox | None = None
        self.chunk = chunk
        self.timeout_s = timeout_s
        self.mixed = mixed
        with phase("starting Ray"), keeping_sigterm():
            self._ray, self._own_cluster = connect(workers, cpus)
        self._make = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_Worker).remote
        self._spec = self._ray.put(spec)
        self._load: dict[Any, int] = {}
        self._opening: dict[Any, Any] = {}  # actor -> the fingerprint that it still owes
        self._flying: dict[Any, _Flight] = {}  # call -> where it is
        self._identity: dict[str, Any] = {}
        self._described: tuple[BoxSpec, Space] | None = None
        self._images: dict[str, Array] = {}
        """Image features `(1, n, E)` of a split that no candidate moves: sent once, not with every chunk."""
        self._encoded: set[str] = set()
        """Splits that workers have begun to encode."""
        self._raylet_seen = 0.0
        self._warned = False
        self._chunk_s = math.inf
        """Shortest time from sending a chunk to its answer."""
        try:
            check_room(cpus, gpus, own=self._own_cluster)
            with phase(f"opening {spec.box} in {_count(workers)}"):
                for _ in range(workers):
                    self._hire()
                self._identity = self._first_fingerprint()
        except BaseException:
            self.close()
            raise

    def evaluate(self, thetas: Array, rows: Array | None = None, *, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split (None: all)."""
        self._warn_once()
        known = self._images.get(split) if table else None
        chunks = chunks_of(thetas, self.chunk)
        each = -(-len(chunks) // self.workers) if self._chunk_s < QUICK_S else 1
        groups = [chunks[start : start + each] for start in range(0, len(chunks), each)]
        jobs = [_Job("evaluate", (group, known is not None, rows, split, table), chunks=len(group)) for group in groups]
        with self._encoding(split):
            retries, duplicates = self._dispatch(jobs)
        reply = replace(join([each for job in jobs for each in job.answer]), retries=retries, duplicates=duplicates)
        if reply.outputs is None or "image" in reply.outputs.moves:
            return reply
        if known is not None:
            image = known if rows is None else known[:, rows]
            return replace(reply, outputs=replace(reply.outputs, image=image))
        if rows is None and reply.outputs.image is not None:
            self._images[split] = reply.outputs.image
        return reply

    def stage(self, split: str) -> None:
        """Encode a split's images in all workers at once, until the first of them has them all."""
        for actor in self._load:
            actor.stage.remote(split)
        with self._encoding(split):
            self._dispatch([_Job("stage", (split,))])

    def read(self, theta: Array | None, split: str, *, whole: bool) -> Reply:
        """The answer for one candidate, or for the template itself (None), on a whole split."""
        job = _Job("call", ("read", theta, split, whole))
        with self._encoding(split):
            retries, duplicates = self._dispatch([job])
        return replace(job.answer, retries=retries, duplicates=duplicates)

    def decode(self, theta: Array) -> dict[str, Array]:
        """The prompt of one candidate, as an artifact keeps it."""
        return self._one("decode", theta)

    def describe(self) -> tuple[BoxSpec, Space]:
        """The box's spec, and the space of the prompt."""
        if self._described is None:
            self._described = self._one("describe")
        return self._described

    def fingerprint(self) -> dict[str, Any]:
        """What all workers share: device, builds and the bits of a canary."""
        return self._identity

    def pids(self) -> list[int]:
        """Process ids of the workers, for those who want to watch (or to kill) them."""
        return self._ray.get([actor.pid.remote() for actor in self._load])

    def close(self) -> None:
        """End the workers, and the local Ray if this pool started it."""
        for actor in self._load:
            self._ray.kill(actor, no_restart=True)
        self._load.clear()
        self._flying.clear()
        if self._own_cluster:
            self._ray.shutdown()

    # -----------------------------------------------------------------------------------------------------------------

    def _warn_once(self) -> None:
        """Say so where the box answers faster than a call travels."""
        if self._chunk_s < QUICK_S and not self._warned:
            self._warned = True
            log.warning(
                "this box answers a chunk of candidates in %.0f ms, about what a call to a worker takes: workers bring "
                "little, and --workers 0 starts sooner", 1e3 * self._chunk_s,
            )  # fmt: skip

    def _encoding(self, split: str) -> AbstractContextManager[None]:
        """The phase in which workers encode a split, at its first use."""
        new, self._encoded = split not in self._encoded, self._encoded | {split}
        return phase(f"encoding {split} images in {_count(self.workers)}") if new else nullcontext()

    def _one(self, name: str, *args: Any) -> Any:
        """What one worker says to a question that costs nothing."""
        job = _Job("call", (name, *args))
        self._dispatch([job])
        return job.answer

    def _hire(self) -> None:
        actor = self._make(self._spec)
        self._load[actor] = 0
        self._opening[actor] = actor.open.remote()

    def _first_fingerprint(self) -> dict[str, Any]:
        """That of the first worker to be ready; the others are compared before their first answer is used."""
        ready, _ = self._ray.wait(list(self._opening.values()), num_returns=1, timeout=OPENING_S)
        if not ready:
            raise BoxError(
                f"no worker was ready within {OPENING_S:g} s on a cluster of {self._ray.cluster_resources()}; "
                "ask for fewer cpus or gpus a worker (pool.cpus, pool.gpus)"
            )
        try:
            return self._ray.get(ready[0])
        except self._ray.exceptions.RayTaskError as error:
            raise _cause(error) from None
        except self._ray.exceptions.RayActorError as error:
            raise BoxError(f"a worker died while it opened the box: {error}; is there enough memory?") from None

    def _check(self, actor: Any) -> None:
        """Refuse to mix the answers of workers that differ."""
        if actor not in self._opening:
            return
        theirs = self._ray.get(self._opening.pop(actor))
        if theirs != self._identity and not self.mixed:
            pairs = {k: (v, theirs.get(k)) for k, v in self._identity.items() if v != theirs.get(k)}
            raise BoxError(
                f"workers differ in {pairs}, so their answers would not be the same bits; "
                "use nodes of one kind, or allow it with pool.mixed=true"
            )

    def _check_raylet(self, now: float) -> None:
        """Raise BoxError where Ray itself has ended on this machine; looked for every few seconds.

        Workers outlive their raylet by some ten seconds; then Ray's own code ends this process without a word.
        """
        if now - self._raylet_seen < RAYLET_S:
            return
        self._raylet_seen = now
        node = self._ray.get_runtime_context().worker.node
        with socket.socket(socket.AF_UNIX) as raylet:
            try:
                raylet.connect(node.raylet_socket_name)
            except OSError as error:
                raise BoxError(
                    "Ray's raylet on this machine has ended (killed, or out of memory?), and the workers with it; "
                    "start Ray again if it was yours, then go on with --resume, perhaps with fewer --workers"
                ) from error

    def _greet(self) -> None:
        """Take note of the workers that have opened the box meanwhile. One that died is found by its next call."""
        owed = {ref: actor for actor, ref in self._opening.items()}
        if not owed:
            return
        for ref in self._ray.wait(list(owed), num_returns=len(owed), timeout=0)[0]:
            try:
                self._check(owed[ref])
            except self._ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except self._ray.exceptions.RayActorError:
                continue

    def _dispatch(self, jobs: list[_Job]) -> tuple[int, int]:
        """Answer all jobs; the number of calls issued again, and of calls issued twice."""
        ray = self._ray
        todo = deque(jobs)
        retries = duplicates = 0
        while not all(job.done for job in jobs):
            self._greet()
            # Whoever is still opening the box is waited for only where nobody else can answer.
            open_ones = [actor for actor in self._load if actor not in self._opening] or list(self._load)
            depth = DEPTH if len(todo) > len(open_ones) else 1
            for actor in sorted(open_ones, key=lambda a: self._load[a]):
                while todo and self._load[actor] < depth:
                    self._send(actor, todo.popleft())
            if not todo:
                duplicates += self._copy_stragglers()
            ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=1.0)
            lost = set()
            for call in ready:
                flight = self._flying[call]
                try:
                    answer = ray.get(call)
                    self._check(flight.actor)
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from None
                except ray.exceptions.RayActorError:
                    lost.add(flight.actor)
                    continue
                del self._flying[call]
                self._load[flight.actor] -= 1
                if not flight.job.done:
                    flight.job.answer, flight.job.done = answer, True
                    if flight.job.method == "evaluate":
                        self._chunk_s = min(self._chunk_s, (time.monotonic() - flight.sent) / flight.job.chunks)
            now = time.monotonic()
            lost |= {flight.actor for flight in self._flying.values() if now > flight.deadline}
            self._check_raylet(now)
            for actor in lost:
                again = self._replace(actor)
                retries += len(again)
                todo.extendleft(reversed(again))
        return retries, duplicates

    def _send(self, actor: Any, job: _Job) -> None:
        job.copies += 1
        self._load[actor] += 1
        now = time.monotonic()
        patience = self.timeout_s * job.chunks * self._load[actor]
        deadline = now + patience + (OPENING_S if actor in self._opening else 0)
        self._flying[getattr(actor, job.method).remote(*job.args)] = _Flight(actor, job, now, deadline)

    def _replace(self, actor: Any) -> list[_Job]:
        """Take leave of a lost or late worker and hire another; its unanswered jobs, to be given to others."""
        self._ray.kill(actor, no_restart=True)
        del self._load[actor]
        self._opening.pop(actor, None)
        again = []
        for call in [call for call, flight in self._flying.items() if flight.actor is actor]:
            job = self._flying.pop(call).job
            job.copies -= 1
            if not job.done and not job.copies:
                job.tries += 1
                again.append(job)
        if any(job.tries >= ATTEMPTS for job in again):
            raise BoxError(
                f"{ATTEMPTS} workers in a row were lost, or gave no answer within {self.timeout_s:g} s, on the same "
                "chunk; is there memory enough for each? Try fewer workers, a smaller chunk or a longer pool.timeout_s"
            )
        log.warning("a worker was lost or late: %d of its calls go to others, a new one takes its place", len(again))
        self._hire()
        return again

    def _copy_stragglers(self) -> int:
        """Near a step's end, give what is very late to an idle worker as well."""
        idle = [actor for actor, load in self._load.items() if load == 0 and actor not in self._opening]
        now = time.monotonic()
        late = [
            f.job for f in self._flying.values() if now - f.sent > STRAGGLER_S and f.job.copies == 1 and not f.job.done
        ]
        for actor, job in zip(idle, late, strict=False):
            self._send(actor, job)
        return min(len(idle), len(late))


def _count(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def _cause(error: Any) -> BaseException:
    """The user's error inside Ray's, or a BoxError that carries what the worker said."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, KeyholeError) else BoxError(f"a worker failed: {error}")
