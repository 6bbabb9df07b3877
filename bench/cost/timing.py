"""Sound timings: a clock for a device, its matrix rate beside every measurement, and the spread of paired ratios."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Way:
    """One of the ways to the same features."""

    call: Callable[[], Any]
    """Gives a tensor; its first axis are the candidates, perhaps fewer than ours."""
    count: int
    """How many one call stands for."""


def compared(
    ways: Mapping[str, Way],
    rate: Callable[[], float],
    seconds: Callable[[Callable[[], Any]], tuple[float, Any]],
    turns: int,
    flops: tuple[float, float],
) -> dict[str, Any]:
    """Time all ways in turns, the matrix rate beside them, and compare the others with `ours`.

    Args:
        ways: By name.
        rate: As `matrix_rate` gives it.
        seconds: As `clock` gives it.
        turns: How often.
        flops: Of one by ours when nothing is computed twice, and of one by the plain way.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    rates, results = [], {}
    for _ in range(turns):
        rates.append(rate())
        for name, way in ways.items():
            took, results[name] = seconds(way.call)
            spent[name].append(took / way.count)
    ours, features = spent.pop("ours"), results.pop("ours")
    speeds = [flops[0] / took / 1e9 for took in ours]
    return {
        "turns": turns,
        "ms": 1e3 * statistics.median(ours),
        "ratio": {name: _spread([a / b for a, b in zip(other, ours, strict=True)]) for name, other in spent.items()},
        "flops_saved": flops[1] / flops[0],
        "floor_gflop": flops[0] / 1e9,
        "gflops": statistics.median(speeds),
        "rate_gflops": statistics.median(rates),
        "of_rate": statistics.median(a / b for a, b in zip(speeds, rates, strict=True)),
        "difference": max(float((other - features[: len(other)]).abs().max()) for other in results.values()),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def work_cells(row: Mapping[str, Any], digits: int) -> tuple[str, ...]:
    """The cells of a table for FLOPs saved, the floor and the speed."""
    return f"{row['flops_saved']:.{digits}f}", f"{row['floor_gflop']:.{digits}f}", f"{row['gflops']:.0f}"


def ratio(found: Mapping[str, float], bar: float | None = None, digits: int = 1) -> str:
    """`28.7 [26.9, 29.9] (15)`: median, least and most of paired ratios, and the bar, if there is one."""
    median, least, most = (f"{found[name]:.{digits}f}" for name in ("median", "least", "most"))
    missed = "" if bar is None or found["median"] >= bar else ", missed"
    return f"{median} [{least}, {most}]" + ("" if bar is None else f" ({bar:g}{missed})")


def clock(device: Any) -> Callable[[Callable[[], Any]], tuple[float, Any]]:
    """Runs a call; its seconds (this thread's CPU time, or wall-clock time where the device is no CPU), its result."""
    import torch

    def on_cpu(call: Callable[[], Any]) -> tuple[float, Any]:
        begin = time.thread_time()
        result = call()
        return time.thread_time() - begin, result

    def elsewhere(call: Callable[[], Any]) -> tuple[float, Any]:
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        result = call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begin, result

    return on_cpu if device.type == "cpu" else elsewhere


def matrix_rate(device: Any, width: int) -> Callable[[], float]:
    """Measures GFLOP/s of an MLP's first matrix product: the faster of this torch's plain and its prepacked one."""
    import torch

    from engine.boxes.clip.transformer_blocks import can_prepack, linear

    rows = 1024 if device.type == "cpu" else 16384
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(device)
    weight = torch.randn(4 * width, width, generator=generator).to(device)
    seconds = clock(device)
    ways = [linear(weight, None, prepack=prepack) for prepack in {False, can_prepack(device)}]

    def measure() -> float:
        best = min(statistics.median(seconds(lambda: way(x))[0] for _ in range(7)) for way in ways)  # noqa: B023
        return 2 * rows * 4 * width**2 / best / 1e9

    measure()
    return measure


@contextmanager
def stopwatch(
    methods: Mapping[str, Sequence[tuple[type, str]]], clock: Callable[[], float]
) -> Iterator[dict[str, float]]:
    """Seconds by name that methods of classes take in this process, whoever calls them, while the block lasts.

    Args:
        methods: By name, (class, method) pairs that do not call each other.
        clock: Seconds, such as `time.thread_time`.
    """
    spent = dict.fromkeys(methods, 0.0)

    def timed(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            try:
                return call(*args, **kwargs)
            finally:
                spent[name] += clock() - started

        return inside

    with ExitStack() as patches:
        for name, pairs in methods.items():
            for owner, method in pairs:
                patches.enter_context(patch.object(owner, method, timed(getattr(owner, method), name)))
        yield spent


def machine(device: str) -> dict[str, Any]:
    """What stands above a table of timings."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "threads": 1,
    }
