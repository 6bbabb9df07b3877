"""A gate before a comparison: the template must reach its published accuracy, or the set-up is not the published one.

Wrong weights, activation, preprocessing, class names or splits all show here, before anything is spent on tuning.
Knows nothing of where trials run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.errors import RecipeError, TaskError
from tuning.compare.comparison import Arm, Comparison, fill, make_trial
from tuning.compare.trial import ERROR, RESULT

TOLERANCE = 0.015
"""Published values are of fp16 weights and rounded; a wrong template or activation moves accuracy by more."""


def published(comparison: Comparison) -> dict[str, float]:
    """The accuracies that the gate asks for, by task URI. Raises RecipeError for a setting that no gate has."""
    unknown = comparison.gate.keys() - {"zero_shot", "tolerance", "box"}
    if unknown:
        raise RecipeError(f"gate.{sorted(unknown)[0]} is unknown; a gate has zero_shot, tolerance and box")
    return {fill(task, comparison): float(value) for task, value in (comparison.gate.get("zero_shot") or {}).items()}


def check(comparison: Comparison, home: Path, run: Callable[..., None]) -> None:
    """Read the template's accuracy on the tasks that the gate names; raises TaskError where one is off."""
    gate, wanted = comparison.gate, published(comparison)
    if not wanted:
        return
    box = gate.get("box", comparison.boxes[0])
    plain = replace(comparison, base_to_new=False, shift=(), recipe={})
    arm = Arm(label="zero-shot", method="zero-shot", settings={"method": "zero-shot"}, config={}, searched={})
    tasks = [task for task in (fill(task, comparison) for task in comparison.tasks) if task in wanted]
    trials = [make_trial(plain, arm, task, box, comparison.shots[0], comparison.seeds[0], {}) for task in tasks]
    folders = [trial.write(home) for trial in trials]
    run(folders)
    off = []
    for task, folder in zip(tasks, folders, strict=True):
        if (folder / ERROR).exists():
            off.append(f"{task}: {json.loads((folder / ERROR).read_text(encoding='utf-8'))['error']}")
        elif (folder / RESULT).exists():
            ours = json.loads((folder / RESULT).read_text(encoding="utf-8"))["accuracy"]
            if abs(ours - wanted[task]) > gate.get("tolerance", TOLERANCE):
                off.append(f"{task}: the template reaches {ours:.4f}, published is {wanted[task]:.4f}")
    if off:
        raise TaskError(
            "the gate is closed: " + "; ".join(off) + ". Check weights, activation, splits and templates "
            "(docs/coop11.md), or set gate={} to go on with a set-up that is not the published one"
        )
