"""Trials of `keyhole bench search`: one method, task, seed and budget each, spread over processes, kept in a file.

Knows nothing of what is compared, of step sizes and of tables.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine import search
from engine.errors import RefusedError
from engine.files import write_text
from engine.ledger import Ledger
from engine.session import Session
from engine.tuning_loop import steps
from tuning.compare.opened import opened
from tuning.compare.sweep_spaces import in_words
from tuning.outcome import of_head, of_prompt, train_loss
from tuning.recipe import Recipe, make_recipe
from tuning.resolve import prompt_of
from tuning.run import refuse

CHUNK = 32
"""Candidates evaluated together: a small text tower takes as long for one as for three."""
REFERENCE = "reference"
"""In place of a method: zero-shot and white-box CoOp."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method with its options: a row of the tables."""

    label: str
    method: str
    options: Mapping[str, Any]
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings of the prompt."""

    @classmethod
    def read(cls, word: str) -> Arm:
        """From the command line's `name:option=value:prompt.setting=value`.

        >>> Arm.read("nevergrad:CMA:sigma=0.3:prompt.per_class=true")
        Arm(label='nevergrad:CMA sigma=0.3 per_class=True', method='nevergrad:CMA', options={'sigma': 0.3},
            prompt={'per_class': True})

        Raises RecipeError for a method or an option that nobody has.
        """
        parts = word.split(":")
        name = ":".join(part for part in parts if "=" not in part)
        settings = [part if part.startswith("prompt.") else f"method.{part}" for part in parts if "=" in part]
        given = make_recipe({"method": {"name": name}}, settings)
        search.make(name, given.options)
        prompt = {part.name: value for part in fields(given.prompt)
                  if (value := getattr(given.prompt, part.name)) != part.default}  # fmt: skip
        label = " ".join([name, *filter(None, map(in_words, (given.options, prompt)))])
        return cls(label=label, method=name, options=dict(given.options), prompt=prompt)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial: all that its numbers follow from, besides the code."""

    task: str
    method: str
    options: Mapping[str, Any]
    settings: str
    """The method as made, so that a trial with other defaults is not taken for this one."""
    budget: float
    seed: int
    box: str
    shots: int
    prompt: Mapping[str, Any]
    """Its settings, as in a recipe."""

    @classmethod
    def of(cls, arm: Arm, task: str, seed: int, budget: float, where: Mapping[str, Any]) -> Job:
        """The trial of an arm. `where` holds `box`, `shots` and `prompt`, as in a recipe."""
        made = None if arm.method == REFERENCE else search.make(arm.method, arm.options)
        prompt = prompt_of(make_recipe({"prompt": {**where["prompt"], **arm.prompt}}), made)
        return cls(
            task=task,
            method=arm.method,
            options=dict(arm.options),
            settings=repr(made),
            budget=float(budget),
            seed=seed,
            box=where["box"],
            shots=where["shots"],
            prompt=asdict(prompt),
        )

    @property
    def recipe(self) -> Recipe:
        """What is opened for it."""
        where = {"task": self.task, "box": self.box, "shots": self.shots, "seed": self.seed}
        return make_recipe({**where, "prompt": self.prompt, "pool": {"chunk": CHUNK}})


def trial(job: Job) -> dict[str, Any]:
    """One run; selection by validation, the test split read at the end. Returns a row.

    Its numbers are those of the prompt; `with_head` holds what they are with the head that the method deploys it with.
    """
    if job.method == REFERENCE:
        return {**asdict(job), **_reference(job)}
    made = search.make(job.method, job.options)
    task, evaluator = opened(job.recipe, made)
    head = getattr(made, "head", None)
    head = None if head == "templates" else head
    ledger = Ledger(images=len(task.train), budget=job.budget)
    session = Session(evaluator, ledger, task.splits, keep=head is not None)
    refuse(made, job.method, session.spec)
    begun: Any = made.start(session.space, job.budget, job.seed)
    if hasattr(begun, "introduce"):
        begun.introduce(session.templates())
    if hasattr(begun, "look_inside"):
        begun.look_inside(partial(evaluator.evaluate, table=True), task.train.labels)
    started = time.process_time()
    *_, last = steps(begun, session, seed=job.seed, table=made.needs.table)
    seconds = time.process_time() - started
    best = last.best
    loss = train_loss(session, best, job.recipe.objective)
    told = of_prompt(best.theta, session, val_accuracy=best.val_accuracy, train_loss=loss)
    row = {
        **asdict(job),
        "evaluations": ledger.evaluations,
        "pairs": ledger.pairs,
        "best_loss": last.best_loss,
        "train_loss": loss,
        "val_loss": best.val_loss,
        "val_accuracy": best.val_accuracy,
        "accuracy": told.accuracy,
        "cpu_seconds": round(seconds, 3),
    }
    if head is not None:
        told = of_head(head, best.theta, session, job.seed)
        row["with_head"] = {"head": head, "best_loss": told.train_loss, "accuracy": told.accuracy}
    return row


def _reference(job: Job) -> dict[str, Any]:
    """Training loss and test accuracy of the template, and of white-box CoOp where the box is open."""
    from tuning.white_box.coop import coop

    task, evaluator = opened(job.recipe, None)
    zero = np.zeros((1, evaluator.describe()[1].dim), np.float32)
    found: dict[str, Any] = {
        "images": len(task.train),
        "zero_shot_loss": float(evaluator.evaluate(zero).losses[0]),
        "zero_shot_accuracy": int(evaluator.evaluate(zero, split="test").correct[0]) / len(task.test),
    }
    try:
        ceiling = coop(evaluator.problem.box, task, tokens=job.prompt["tokens"], seed=job.seed)
    except RefusedError:
        return found
    return {**found, "coop_loss": ceiling.train_loss, "coop_accuracy": ceiling.accuracy}


# ---------------------------------------------------------------------------------------------------------------------
# Many of them


def run(
    arms: Sequence[Arm],
    tasks: Sequence[str],
    seeds: Sequence[int],
    budgets: Sequence[float],
    where: Mapping[str, Any],
    out: Path,
    processes: int,
) -> list[dict[str, Any]]:
    """A row a trial, with the arm's `label`; trials that the file `out` already holds are not repeated.

    Args:
        where: as `Job.of`.
        processes: how many trials at once; 0: in this process.
    """
    # Trials that share an opened box stand together.
    planned = [(arm, Job.of(arm, t, s, b, where)) for t in tasks for s in seeds for arm in arms for b in budgets]
    rows = _read(out)
    todo = {_key(asdict(job)): job for _, job in planned}
    todo = {key: job for key, job in todo.items() if key not in rows}
    with open(out, "a", encoding="utf-8") as file:
        for number, row in enumerate(_carried_out(list(todo.values()), processes), 1):
            rows[_key(row)] = row
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(f"{number}/{len(todo)} {_told(row)}", file=sys.stderr)
    return [{**rows[_key(asdict(job))], "label": arm.label} for arm, job in planned]


def with_heads(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and again those of methods that deploy their prompt with a head: as they are with it."""
    again = [
        {**row, **row["with_head"], "label": f"{row['label']}, with its {row['with_head']['head']}"}
        for row in rows
        if "with_head" in row
    ]
    return [*map(dict, rows), *again]


def _told(row: Mapping[str, Any]) -> str:
    words = [row["task"], row["method"], in_words(row["options"]), f"{row['budget']:g} seed {row['seed']}"]
    if "best_loss" in row:
        words.append(f"loss {row['best_loss']:.4f} accuracy {row['accuracy']:.4f}")
    return " ".join(filter(None, words))


def _read(out: Path) -> dict[str, dict[str, Any]]:
    """Finished trials by key. Half a line, which a killed process left, is cut off."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.read_text(encoding="utf-8") if out.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(out, whole)
    return {_key(row): row for row in map(json.loads, whole.splitlines())}


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(name) for name in Job.__dataclass_fields__])


def _carried_out(jobs: Sequence[Job], processes: int) -> Iterator[dict[str, Any]]:
    if processes == 0:
        yield from map(trial, jobs)
        return
    with ProcessPoolExecutor(processes) as pool:
        try:
            for future in as_completed([pool.submit(trial, job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
