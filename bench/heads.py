"""`keyhole bench heads`: what a prompt, a head and both together reach on the embedded tasks.

Test accuracy of every head alone (on the template), of a searched prompt alone, of that prompt with each head fitted to
the answers already paid for, and of white-box CoOp. `auto` is the head, or none, that validation chooses; it is the
only row of its kind that a user can have, the best of the others being known only afterwards.

Trials are appended to a JSON-lines file and are not repeated when the command runs again.
Knows nothing of Ray and of run folders.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.entry import Answering, Parser, enter, numbers
from engine import heads, search
from engine.evaluators.serial import Serial
from engine.heads.score_heads import log_probabilities
from engine.ledger import Ledger
from engine.objectives import cross_entropy
from engine.protocols import Array, Outputs
from engine.session import Session
from engine.tuning_loop import steps
from tuning.recipe import make_recipe
from tuning.run import problem_of, task_of

TASKS = ("mini:digits", "mini:biased", "mini:bgcol", "mini:countw", "mini:color")
SPLITS = ("train", "val", "test")
CHUNK = 8
"""Candidates encoded together."""
PROMPTS = {"template": "head alone", "prompt": "with the prompt"}


def trial(task_uri: str, seed: int, method: str, options: Mapping[str, Any], budget: float, box: str) -> dict[str, Any]:
    """One few-shot sample: accuracy and validation loss of every combination, `template`, `prompt` and `coop`."""
    from tuning.white_box.coop import coop

    began = time.process_time()
    recipe = make_recipe({"task": task_uri, "box": box, "seed": seed})
    task = task_of(recipe)
    made = search.make(method, options)
    plain, evaluator = (Serial(problem_of(recipe, task, searched), chunk=CHUNK) for searched in (None, made))
    alone, session = (
        Session(one, Ledger(images=len(task.train), budget=budget), task.splits, keep=True)
        for one in (plain, evaluator)
    )
    *_, last = steps(made.start(session.space, budget, seed), session, seed=seed, table=made.needs.table)
    return {
        **_settings(task_uri, seed, method, options, budget, box),
        "template": _heads(alone, np.zeros(alone.space.dim, np.float32), seed),
        "prompt": _heads(session, last.best.theta, seed),
        "coop": coop(evaluator.problem.box, task, seed=seed).accuracy,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _heads(session: Session, theta: Array, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy on the test split and validation loss by the head's name; `none`: the prompt as it is."""
    labels = {split: session.splits[split].labels for split in SPLITS}
    told = {split: session.outputs(theta, split) for split in SPLITS}
    text, scale = told["val"].text[0], told["val"].scale  # type: ignore[index]
    images = {split: outputs.image[0] for split, outputs in told.items()}  # type: ignore[index]
    scores = {split: scale * image @ text.T for split, image in images.items()}
    found = {"none": _measured(scores["test"], scores["val"], labels)}
    for name in heads.HEADS:
        if name == "auto":  # read off the others, whose fits it would repeat
            continue
        rows = images
        if heads.on_scores(name):
            rows = {split: log_probabilities(table).astype(np.float32) for split, table in scores.items()}
        examples = {split: (rows[split], labels[split]) for split in SPLITS}
        head = heads.fit(name, examples["train"], examples["val"], text, scale, seed)
        found[name] = _measured(head.scores(rows["test"]), head.scores(rows["val"]), labels)
    on_features = {name: row for name, row in found.items() if not heads.on_scores(name)}
    return {**found, "auto": min(on_features.values(), key=lambda row: row["val_loss"])}


def _measured(test: Array, val: Array, labels: Mapping[str, Array]) -> dict[str, float]:
    return {
        "accuracy": float((test.argmax(-1) == labels["test"]).mean()),
        "val_loss": float(cross_entropy(Outputs(scores=val[None]), labels["val"])[0]),
    }


def _settings(task: str, seed: int, method: str, options: Mapping[str, Any], budget: float, box: str) -> dict[str, Any]:
    """What a trial follows from: the method as made, so that other defaults make another trial."""
    return {"task": task, "seed": seed, "method": repr(search.make(method, options)), "budget": budget, "box": box}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a combination, test accuracy in % by task, mean over seeds; the last column the tasks' mean."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = ["| what | " + " | ".join([*tasks, "mean"]) + " |", "|---" * (len(tasks) + 2) + "|"]

    def line(name: str, read: Any) -> str:
        cells = [100 * float(np.mean([read(row) for row in rows if row["task"] == task])) for task in tasks]
        return f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in [*cells, float(np.mean(cells))]) + " |"

    for kind, words in PROMPTS.items():
        for head in rows[0][kind]:
            name = {"template": "zero-shot", "prompt": "prompt alone"}[kind] if head == "none" else f"`{head}`, {words}"
            lines.append(line(name, lambda row, kind=kind, head=head: row[kind][head]["accuracy"]))
    return "\n".join([*lines, line("CoOp (white box)", lambda row: row["coop"])])


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """The command. Exit codes: 0, 2 for a user's mistake."""
    parser = Parser("heads", __doc__)
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="the method's own settings")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--method", default="sketch")
    parser.add_argument("--budget", type=float, default=500)
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-heads/trials.jsonl"))

    def measure(given: argparse.Namespace) -> dict[str, Any]:
        options = make_recipe({"method": {"name": given.method}}, [f"method.{o}" for o in given.options]).options
        given.out.parent.mkdir(parents=True, exist_ok=True)
        known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
        rows = []
        for seed in numbers(given.seeds, int):
            for task in given.tasks.split(","):
                wanted = _settings(task, seed, given.method, options, given.budget, given.box)
                row = next((row for row in known if wanted.items() <= row.items()), None)
                if row is None:
                    row = trial(task, seed, given.method, options, given.budget, given.box)
                    with open(given.out, "a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    alone, both = (row["prompt"][head]["accuracy"] for head in ("none", "auto"))
                    told = f"prompt {alone:.3f}, with a head {both:.3f}, CoOp {row['coop']:.3f}"
                    print(f"{task} seed {seed}: {told}", file=sys.stderr)
                rows.append(row)
        return {"trials": rows}

    return enter(parser, arguments, measure, lambda found: table(found["trials"]), answer=answer)


if __name__ == "__main__":
    sys.exit(main())
