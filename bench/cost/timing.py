"""Sound timings: a clock for a device, its matrix rate beside every measurement, and the spread of paired ratios.

Knows nothing of what is timed.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def spread_of(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


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


def matrix_rate(device: Any, width: int, seed: int) -> Callable[[], float]:
    """Measures GFLOP/s of an MLP's first matrix product: the faster of this torch's plain and its prepacked one."""
    import torch

    from engine.boxes.clip.transformer_blocks import can_prepack, linear

    rows = 1024 if device.type == "cpu" else 16384
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(device)
    weight = torch.randn(4 * width, width, generator=generator).to(device)
    seconds = clock(device)
    ways = [linear(weight, None, prepack=prepack) for prepack in {False, can_prepack(device)}]

    def measure() -> float:
        best = min(statistics.median(seconds(lambda: way(x))[0] for _ in range(7)) for way in ways)  # noqa: B023
        return 2 * rows * 4 * width**2 / best / 1e9

    measure()
    return measure


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
