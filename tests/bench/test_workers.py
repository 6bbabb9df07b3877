from __future__ import annotations

import json

from bench import workers
from engine.evaluators.problem import Problem


def test_shares_are_shares_and_stand_in_the_table(command):
    evaluate = Problem.evaluate
    words = ("--methods", "momentum", "--budget", "20", "--turns", "1")
    code, out, _ = command("bench", "workers", *words, "--json")
    found = json.loads(out)
    row = found["momentum"]
    assert code == 0 and 0.2 < row["encoder_of_worker"] < 1 and 0.2 < row["worker_of_loop"] < 1 and row["worker_ms"] > 0
    assert f"| `momentum` | {row['encoder_of_worker']:.0%} |" in workers.table(found)
    assert Problem.evaluate is evaluate, "the stopwatch is taken off again"
