"""`keyhole bench search`: what each method reaches with a given number of evaluations, on the embedded tasks.

Each (method, task, seed, budget) is a run of its own, since schedules scale to the budget. Trials are appended to a
JSON-lines file and are not repeated when the command runs again.

Knows nothing of Ray: trials are spread over processes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine import search
from engine.core import Task
from engine.errors import KeyholeError
from engine.ledger import Ledger
from engine.loop import steps
from engine.pool import Serial
from tuning.recipe import make_recipe
from tuning.run import problem_of, prompt_of, task_of

TASKS = ("mini:digits", "mini:biased", "mini:bgcol", "mini:countw", "mini:color")
METHODS = ("momentum", "nevergrad:DiagonalCMA", "nevergrad:CMA")
BUDGETS = (100, 200, 500, 1000, 2000, 5000)


@lru_cache(maxsize=2)
def _opened(
    task_uri: str, box: str, seed: int, shots: int, tokens: int | None, name: str = "text", subspace: str = "full"
) -> tuple[Serial, Task]:
    prompt = {"name": name, "tokens": tokens, "subspace": subspace}
    recipe = make_recipe({"task": task_uri, "box": box, "seed": seed, "shots": shots, "prompt": prompt})
    task = task_of(recipe)
    return Serial(problem_of(recipe, task), chunk=recipe.pool.chunk), task


def trial(task_uri: str, method: str, options: Mapping[str, Any], budget: float, seed: int, **where: Any) -> dict:
    """One run; selection by validation, the test split read once. Returns a flat row."""
    box, shots, tokens = where.get("box", "mini:resnet"), where.get("shots", 16), where.get("tokens")
    made = search.make(method, options)
    prompt = prompt_of(make_recipe({"prompt": {"tokens": tokens}}), made)
    evaluator, task = _opened(task_uri, box, seed, shots, prompt.tokens, prompt.name, prompt.subspace or "full")
    spec, dim, free = evaluator.describe()
    made = search.fit_units(made, spec.text.sigma if spec.text and prompt.name == "text" else None)
    begun = made.start(dim, budget, seed)
    if hasattr(begun, "introduce"):
        begun.introduce(evaluator.call("pool"))
    ledger = Ledger(images=len(task.train), budget=budget)
    started = time.perf_counter()
    rounds = steps(
        begun,
        evaluator,
        ledger=ledger,
        num_val=len(task.val),
        free_looks=free,
        seed=seed,
        table=made.needs.table,
        labels=task.train.labels,
    )
    *_, last = rounds
    seconds = time.perf_counter() - started
    chosen = evaluator.evaluate(np.stack([last.best.theta]), split="test")
    return {
        "task": task_uri,
        "method": method,
        "options": dict(options),
        "budget": budget,
        "seed": seed,
        **where,
        "evaluations": ledger.evaluations,
        "pairs": ledger.pairs,
        "best_loss": last.best_loss,
        "train_loss": evaluator.problem.cross_entropy(last.best.theta),
        "val_loss": last.best.val_loss,
        "val_accuracy": last.best.val_accuracy,
        "accuracy": float(chosen.correct[0]) / len(task.test),
        "seconds": round(seconds, 3),
    }


def references(tasks: Iterable[str], seeds: Iterable[int], box: str) -> dict[str, dict[str, float]]:
    """Zero-shot and white-box CoOp: per task, means over seeds of training loss and test accuracy."""
    from tuning.ceiling import coop

    found: dict[str, dict[str, float]] = {}
    for uri in tasks:
        rows = []
        for seed in seeds:
            evaluator, task = _opened(uri, box, seed, 16, None)
            zero = np.zeros((1, evaluator.describe()[1]), np.float32)
            ceiling = coop(evaluator.problem.box, task, seed=seed)
            zero_shot = evaluator.evaluate(zero, split="test").correct[0] / len(task.test)
            rows.append((zero_shot, float(evaluator.evaluate(zero).losses[0]), ceiling.accuracy, ceiling.train_loss))
        names = ("zero_shot_accuracy", "zero_shot_loss", "coop_accuracy", "coop_loss")
        found[uri] = dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
    return found


def run(jobs: Sequence[tuple], out: Path, processes: int) -> list[dict]:
    """All trials, those that `out` already holds not repeated."""
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    have = {_key(row) for row in done}
    wanted = {_key(_as_row(job)): job for job in jobs}
    todo = [job for key, job in wanted.items() if key not in have]
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool, open(out, "a", encoding="utf-8") as file:
        for number, future in enumerate(as_completed([pool.submit(_call, job) for job in todo]), 1):
            row = future.result()
            file.write(json.dumps(row) + "\n")
            file.flush()
            done.append(row)
            print(f"{number}/{len(todo)} {row['task']} {row['method']} {row['budget']:g} seed {row['seed']}: "
                  f"loss {row['best_loss']:.4f} accuracy {row['accuracy']:.4f}", file=sys.stderr)  # fmt: skip
    return [row for row in done if _key(row) in wanted]


def _call(job: tuple) -> dict:
    task, method, options, budget, seed, where = job
    return trial(task, method, dict(options), budget, seed, **where)


def _as_row(job: tuple) -> dict:
    task, method, options, budget, seed, where = job
    return {"task": task, "method": method, "options": options, "budget": budget, "seed": seed, **where}


def _key(row: Mapping[str, Any]) -> str:
    names = ("task", "method", "options", "budget", "seed", "box", "tokens")
    return json.dumps([row.get(name) for name in names])


def table(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: per method and budget, means over tasks of the means over seeds, with the seeds' standard error."""
    budgets = sorted({row["budget"] for row in rows})
    lines = ["| method | " + " | ".join(f"{b:g}" for b in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for budget in budgets:
            mine = [row for row in rows if row["method"] == method and row["budget"] == budget]
            cells.append(f"{_mean(mine, 'best_loss')} / {_mean(mine, 'accuracy')}" if mine else "")
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    if known:
        means = {name: float(np.mean([entry[name] for entry in known.values()])) for name in next(iter(known.values()))}
        lines.append(f"\nZero-shot {means['zero_shot_loss']:.3f} / {means['zero_shot_accuracy']:.3f}, "
                     f"white-box CoOp {means['coop_loss']:.3f} / {means['coop_accuracy']:.3f}.")  # fmt: skip
    return "\n".join(lines)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(row[name])
    means = [float(np.mean(values)) for values in by_seed.values()]
    spread = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return f"{np.mean(means):.3f}±{spread:.3f}"


def picture(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Training loss and test accuracy against evaluations, a panel a task, lines told apart by colour and marker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    # Okabe and Ito's palette, told apart by colour-blind readers too.
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
    markers = "osD^vP*X"
    figure, axes = plt.subplots(2, len(tasks), figsize=(3.1 * len(tasks), 5.6), sharex=True, squeeze=False)
    for column, task in enumerate(tasks):
        for line, name in enumerate(("best_loss", "accuracy")):
            axis = axes[line][column]
            for i, method in enumerate(methods):
                mine = [row for row in rows if row["task"] == task and row["method"] == method]
                budgets = sorted({row["budget"] for row in mine})
                values = [[row[name] for row in mine if row["budget"] == budget] for budget in budgets]
                middle = np.array([np.mean(value) for value in values])
                spread = np.array([np.std(value) for value in values])
                style = {"color": colours[i % len(colours)], "marker": markers[i % len(markers)]}
                axis.plot(budgets, middle, label=method, markersize=4, linewidth=1.4, **style)
                axis.fill_between(budgets, middle - spread, middle + spread, color=style["color"], alpha=0.12)
            if task in known:
                prefix = "loss" if name == "best_loss" else "accuracy"
                axis.axhline(known[task][f"zero_shot_{prefix}"], color="0.6", linestyle=":", label="zero-shot")
                axis.axhline(known[task][f"coop_{prefix}"], color="0.3", linestyle="--", label="CoOp (white box)")
            axis.set_xscale("log")
            axis.grid(alpha=0.25)
            axis.set_title(task if line == 0 else "", fontsize=10)
            if column == 0:
                axis.set_ylabel("training loss" if line == 0 else "test accuracy")
            if line == 1:
                axis.set_xlabel("evaluations")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=min(6, len(labels)), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="keyhole bench search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    given = parser.parse_args(arguments)
    tasks, methods = given.tasks.split(","), given.methods.split(",")
    seeds, budgets = [int(s) for s in given.seeds.split(",")], [float(b) for b in given.budgets.split(",")]
    where = {"box": given.box, "tokens": given.tokens}
    try:
        for method in methods:
            search.make(method)
        jobs = [(t, m, {}, b, s, where) for t in tasks for s in seeds for b in budgets for m in methods]
        rows = run(jobs, given.out / "trials.jsonl", given.processes)
        known = references(tasks, seeds, given.box)
    except KeyholeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    (given.out / "references.json").write_text(json.dumps(known, indent=2) + "\n")
    picture(rows, known, given.out / "curves.png")
    print(table(rows, known))
    return 0


if __name__ == "__main__":
    sys.exit(main())
