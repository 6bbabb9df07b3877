"""`keyhole bench tasks`: which tasks give a prompt real work. The others are controls.

A task is admitted when white-box CoOp or a linear probe is clearly above zero-shot: by more than 3 points of accuracy
and by more than two standard errors, paired by image and over the seeds. Everything is measured on images of the pool
that the few-shot sample left over; the test split is never opened. Exit code 1: a task's own `control` mark disagrees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.entry import Bench, Parser, header, line, numbers
from engine.boxes import open_box
from engine.errors import TaskError
from engine.heads import fit
from engine.protocols import Array
from engine.task import Task
from tuning.compare.comparison import split_list
from tuning.data.load_task import few_shot_rows, load_pool, task_names
from tuning.white_box.coop import encode, fit_coop

MARGIN = 0.03
ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What was measured on one task; accuracies are means over seeds, fractions of 1."""

    task: str
    images: int
    """Fresh validation images a seed."""
    zero_shot: float
    coop: float
    linear: float
    coop_gain: float
    coop_error: float
    """Standard error of the gain."""
    linear_gain: float
    linear_error: float
    admitted: bool
    """The verdict of the rule."""
    control: bool
    """What the task says of itself."""

    @property
    def agrees(self) -> bool:
        return self.admitted != self.control


def clearly_above(gain: float, error: float) -> bool:
    """Clearly above zero-shot: by more than 3 points and more than two standard errors."""
    return gain > MARGIN and gain > ERRORS * error


def paired(before: Array, after: Array, fresh: Array) -> tuple[float, float]:
    """Mean gain and its standard error.

    Images and few-shot samples both vary, so both variances are added: that of the images' mean gains, and that of the
    seeds' (with one seed, the images' alone).

    Args:
        before, after: `(S, n)` bool, whether each seed's classifier has each image right.
        fresh: `(S, n)` bool, which images that seed may be measured on.
    """
    change = np.where(fresh, after.astype(np.float64) - before, np.nan)
    seeds = np.nanmean(change, 1)
    images = np.nanmean(change[:, fresh.any(0)], 0)
    error = images.std(ddof=1) ** 2 / len(images)
    if len(seeds) > 1:
        error += seeds.std(ddof=1) ** 2 / len(seeds)
    return float(seeds.mean()), float(np.sqrt(error))


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a task, accuracies in %."""
    lines = [header("task", "fresh images", "zero-shot", "CoOp", "linear probe", "CoOp gain", "probe gain", "verdict")]
    for told in found.values():
        row = Admission(**told)
        accuracies = (f"{100 * value:.1f}" for value in (row.zero_shot, row.coop, row.linear))
        gains = (
            f"{100 * gain:+.1f} +- {100 * error:.1f}"
            for gain, error in ((row.coop_gain, row.coop_error), (row.linear_gain, row.linear_error))
        )
        mark = ("core" if row.admitted else "control") + ("" if row.agrees else " (the task says otherwise)")
        lines.append(line(row.task, row.images, *accuracies, *gains, mark))
    return "\n".join(lines)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    embedded = ",".join(name for name in task_names() if name.startswith("mini:"))
    parser.add_argument("--tasks", default=embedded, help="URIs, comma separated (default: all embedded ones)")
    parser.add_argument("--box", default="mini:resnet")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--shots", type=int, default=16)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """An `Admission` by task. Raises TaskError where a pool has nothing left over to measure on."""
    tasks = split_list(given.tasks, uris=True)
    seeds = numbers(given.seeds, int)
    return {uri: asdict(_admission(load_pool(uri), given.box, seeds, given.shots)) for uri in tasks}


def verdict(given: argparse.Namespace, found: dict[str, Any]) -> int:
    """1 where a task's mark disagrees with the rule."""
    wrong = [uri for uri, row in found.items() if not Admission(**row).agrees]
    if wrong:
        print(f"marked otherwise than the rule says: {', '.join(wrong)}; correct their `control`", file=sys.stderr)
    return 1 if wrong else 0


def _admission(pool: Task, uri: str, seeds: Sequence[int], shots: int) -> Admission:
    box = open_box(uri, classes=pool.classes, template=pool.template)
    # Rows of train, then rows of val: one numbering for all images that may be measured on.
    features = np.concatenate([encode(box, split) for split in (pool.train, pool.val) if len(split)])
    labels = np.concatenate([pool.train.labels, pool.val.labels])
    scale = float(box.model.logit_scale.detach().exp())  # type: ignore[attr-defined]
    right: dict[str, list[Array]] = {"zero_shot": [], "coop": [], "linear": []}
    fresh = np.ones((len(seeds), len(labels)), bool)
    for number, seed in enumerate(seeds):
        train, val = few_shot_rows(pool, shots=shots, seed=seed)
        val = val + len(pool.train) if len(pool.val) else val
        fresh[number, np.concatenate([train, val])] = False
        if not fresh[number].any():
            raise TaskError(f"{pool.uri}: all its images are in the few-shot sample, none to measure on; lower shots")
        examples = (features[train], labels[train]), (features[val], labels[val])
        coop = fit_coop(box, *examples, seed=seed)
        probe = fit("linear", *examples, None, scale, seed)
        template = box.text_tower.encode(None)[0].detach().cpu().numpy()  # type: ignore[attr-defined]
        for name, scores in (
            ("zero_shot", features @ template.T),
            ("coop", features @ coop.text.T),
            ("linear", probe.scores(features)),
        ):
            right[name].append(scores.argmax(-1) == labels)
    hits = {name: np.stack(rows) for name, rows in right.items()}
    gains = {name: paired(hits["zero_shot"], hits[name], fresh) for name in ("coop", "linear")}
    accuracy = {
        name: float(np.mean([h[f].mean() for h, f in zip(rows, fresh, strict=True)])) for name, rows in hits.items()
    }
    return Admission(
        task=pool.uri,
        images=int(fresh.sum(1).min()),
        **accuracy,
        coop_gain=gains["coop"][0],
        coop_error=gains["coop"][1],
        linear_gain=gains["linear"][0],
        linear_error=gains["linear"][1],
        admitted=any(clearly_above(*gain) for gain in gains.values()),
        control=pool.control,
    )


BENCH = Bench(settings=settings, measure=measure, table=table, verdict=verdict)
