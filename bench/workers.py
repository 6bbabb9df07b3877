"""`keyhole bench workers`: where a worker's CPU time goes in a whole run.

A worker does nothing but `Problem.evaluate` and `Problem.read`; so one problem is driven in this process by a real
search, and thread CPU time is read around these and around the encoder's call inside them. Medians over interleaved
turns.
Knows nothing of Ray.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.entry import Answering, Parser, enter
from engine import search
from engine.evaluators.serial import Serial
from engine.ledger import Ledger
from engine.session import Session
from engine.tuning_loop import steps
from tuning.recipe import make_recipe
from tuning.run import problem_of, task_of

METHODS = ("momentum", "nevergrad:DiagonalCMA")


def run(task_uri: str, box: str, methods: Sequence[str], budget: float, chunk: int, turns: int) -> dict[str, Any]:
    """Shares of CPU time by method: encoder within the worker, worker within the whole loop, milliseconds."""
    recipe = make_recipe({"task": task_uri, "box": box, "pool": {"chunk": chunk}})
    task = task_of(recipe)
    shares: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    for _ in range(turns):
        for method in methods:
            made = search.make(method)
            evaluator = Serial(problem_of(recipe, task, made), chunk=chunk)
            session = Session(evaluator, Ledger(images=len(task.train), budget=budget), task.splits)
            zero = np.zeros((1, session.space.dim), np.float32)
            evaluator.evaluate(zero)  # staging and first calls happen once a run and are not part of the rate
            spent = {"encoder": 0.0, "worker": 0.0}
            tower: Any = evaluator.problem.box
            tower.text_tower.encode = _timed(tower.text_tower.encode, spent, "encoder")
            evaluator.problem.evaluate = _timed(evaluator.problem.evaluate, spent, "worker")  # type: ignore[method-assign]
            evaluator.problem.read = _timed(evaluator.problem.read, spent, "worker")  # type: ignore[method-assign]
            started = time.thread_time()
            for _step in steps(made.start(session.space, budget, 1), session, table=made.needs.table):
                pass
            whole = time.thread_time() - started
            per = 1e3 * spent["worker"] / session.ledger.evaluations
            shares[method].append((spent["encoder"] / spent["worker"], spent["worker"] / whole, per))
    names = ("encoder_of_worker", "worker_of_loop", "worker_ms")
    medians = {method: map(statistics.median, zip(*rows, strict=True)) for method, rows in shares.items()}
    return {method: dict(zip(names, values, strict=True)) for method, values in medians.items()}


def _timed(call: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.thread_time()
        try:
            return call(*args, **kwargs)
        finally:
            spent[name] += time.thread_time() - started

    return timed


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    head = (
        "method",
        "encoder, of the worker's CPU time",
        "worker, of the whole loop's",
        "worker's CPU ms an evaluation",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, row in found.items():
        lines.append(
            f"| `{method}` | {row['encoder_of_worker']:.0%} | {row['worker_of_loop']:.0%} | {row['worker_ms']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """The command. Exit codes: 0, 2 for a user's mistake."""
    parser = Parser("workers", __doc__)
    parser.add_argument("--task", default="mini:digits")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budget", type=float, default=1000)
    parser.add_argument("--chunk", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    return enter(
        parser,
        arguments,
        lambda given: run(given.task, given.box, given.methods.split(","), given.budget, given.chunk, given.turns),
        table,
        answer=answer,
    )


if __name__ == "__main__":
    sys.exit(main())
