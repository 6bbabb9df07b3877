"""`keyhole bench workers`: where a worker's CPU time goes in a whole run.

A worker does nothing but `Problem.evaluate` and `Problem.read`. So runs are tuned in this process, and thread CPU time
is read around these and around the encoder's call inside them, from the first round on: opening the box and encoding
the images happen once a run and are not part of the rate. Medians over interleaved turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.cost.timing import stopwatch
from bench.entry import Bench, Parser, header, line
from engine.evaluators.problem import Problem
from tuning.compare.comparison import split_list
from tuning.recipe import Recipe, make_recipe
from tuning.run import Tuning

METHODS = ("momentum", "nevergrad:DiagonalCMA")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Shares of CPU time by method: encoder within the worker, worker within the whole loop, milliseconds."""
    methods = split_list(given.methods)
    where = {"task": given.task, "box": given.box, "budget": given.budget, "pool": {"chunk": given.chunk}}
    recipes = {method: make_recipe({**where, "method": method}) for method in methods}
    turns = [{method: _shares(recipe) for method, recipe in recipes.items()} for _ in range(given.turns)]
    return {
        method: {name: statistics.median(turn[method][name] for turn in turns) for name in turns[0][method]}
        for method in methods
    }


def _shares(recipe: Recipe) -> dict[str, float]:
    from engine.boxes.clip.text_tower import TextTower

    watched: dict[str, list[tuple[type, str]]] = {
        "encoder": [(TextTower, "encode")],
        "worker": [(Problem, "evaluate"), (Problem, "read")],
    }
    before: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, stopwatch(watched, time.thread_time) as spent:
        for step in Tuning(recipe, Path(folder, "run")):
            now = {**spent, "loop": time.thread_time(), "evaluations": step.evaluations}
            before = before or now
    encoder, worker, loop, evaluations = (now[name] - before[name] for name in now)
    return {
        "encoder_of_worker": encoder / worker,
        "worker_of_loop": worker / loop,
        "worker_ms": 1e3 * worker / evaluations,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    columns = "encoder, of the worker's CPU time", "worker, of the whole loop's", "worker's CPU ms an evaluation"
    lines = [header("method", *columns)]
    for method, row in found.items():
        shares = (f"{row[name]:.0%}" for name in ("encoder_of_worker", "worker_of_loop"))
        lines.append(line(f"`{method}`", *shares, f"{row['worker_ms']:.2f}"))
    return "\n".join(lines)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("--task", default="mini:digits")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", type=float, default=1000)
    parser.add_argument("--chunk", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)


BENCH = Bench(settings=settings, measure=measure, table=table)
