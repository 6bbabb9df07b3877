"""Methods that search no prompt: the template itself, heads on returned features, white-box ceilings.

They pay in the same ledger: the training and validation images that they had to send once.
Knows nothing of run folders.
"""

from __future__ import annotations

import numpy as np

from engine import heads
from engine.core import Array, BoxSpec, Evaluator, Task
from engine.errors import RecipeError, RefusedError, nearest
from engine.ledger import Ledger
from engine.prompts.templates import TEMPLATES
from tuning.outcome import Outcome, check_head, of_head, of_prompt, of_templates
from tuning.recipe import Recipe

CEILINGS = ("coop",)
ENSEMBLE = "zero-shot:ensemble"
ABOUT = {
    "zero-shot": "No search: the task's own template, to compare with.",
    ENSEMBLE: "No search: the average of many hand-written templates.",
    "head:linear": "A linear classifier trained on image features.",
    "head:linear-anchored": "The same, held near the zero-shot classifier.",
    "head:gda": "A Gaussian for each class, added to zero-shot.",
    "head:tip": "Tip-Adapter: votes of the training images most alike.",
    "head:clip-adapter": "CLIP-Adapter: a small network on image features.",
    "head:auto": "The best of these heads on validation images.",
    "head:score-linear": "A linear classifier on scores, where features are hidden.",
    "head:score-adapter": "A small network on scores, where features are hidden.",
    "ceiling:coop": "CoOp by gradients: what a search is measured against.",
}
"""What each of `names()` is, in a line."""
PROMPTS = {ENSEMBLE: "words"}
"""Kinds of prompt that some of these need, where it is not text."""


def names() -> tuple[str, ...]:
    """The names of these methods."""
    return ("zero-shot", ENSEMBLE, *(f"head:{name}" for name in heads.HEADS), *(f"ceiling:{name}" for name in CEILINGS))


def is_queryless(method: str) -> bool:
    """Whether a name is of this kind (existing or not)."""
    return method == "zero-shot" or method.startswith(("zero-shot:", "head:", "ceiling:"))


def check(recipe: Recipe) -> None:
    """Raise RecipeError for a name that does not exist, or settings that nobody reads."""
    if recipe.method not in names():
        raise RecipeError(
            f"unknown method {recipe.method!r}{nearest(recipe.method, names())}; allowed are {', '.join(names())}"
        )
    if recipe.options:
        raise RecipeError(f"method {recipe.method} has no options, but got {sorted(recipe.options)}")
    if recipe.head is not None:
        raise RecipeError(
            f"head={recipe.head!r} joins a prompt method, not {recipe.method}; use method=head:NAME alone"
        )


def cost(task: Task, recipe: Recipe) -> float:
    """Evaluations that one pays, at most: the training and validation images, sent once, and other templates."""
    once = 1 + len(task.val) / len(task.train)
    return min(recipe.budget, once + len(TEMPLATES)) if recipe.method == ENSEMBLE else once


def fit(recipe: Recipe, task: Task, evaluator: Evaluator, ledger: Ledger, spec: BoxSpec, dim: int) -> Outcome:
    """Run the method of this name. Raises RefusedError on a box that lacks what it needs."""
    kind, _, name = recipe.method.partition(":")
    if kind == "head":
        check_head(name, spec)
    if recipe.method == ENSEMBLE and "features" not in spec.gives:
        raise RefusedError(
            f"{ENSEMBLE} needs a box that gives features; {spec.uri} gives {', '.join(sorted(spec.gives))}"
        )
    template = np.zeros(dim, np.float32)
    train, val = evaluator.evaluate(template[None]), evaluator.evaluate(template[None], split="val")
    ledger.charge(train)
    ledger.charge(val)
    if recipe.method == ENSEMBLE:
        return _ensemble(template, task, evaluator, ledger)
    if kind == "head":
        return of_head(name, template, task, evaluator, ledger, recipe.seed)
    shot = of_prompt(
        template, task, evaluator, ledger,
        val_accuracy=float(val.correct[0] / len(task.val)), train_loss=evaluator.call("cross_entropy", template),
    )  # fmt: skip
    return shot if kind == "zero-shot" else _ceiling(recipe, task, ledger, shot)


def _ensemble(template: Array, task: Task, evaluator: Evaluator, ledger: Ledger) -> Outcome:
    """The templates that the box knows, as many as the budget covers: an evaluation each."""
    pool = evaluator.call("pool")[: 1 + ledger.affordable(len(task.train))]
    if len(pool) > 1:
        ledger.charge(evaluator.evaluate(pool[1:]))
    return of_templates(pool, template, task, evaluator, ledger, plain=True)


def _ceiling(recipe: Recipe, task: Task, ledger: Ledger, shot: Outcome) -> Outcome:
    from engine.boxes import open_box
    from tuning.ceiling import coop

    box = open_box(
        recipe.box, classes=task.classes, template=task.template, device=recipe.device, threads=recipe.pool.threads
    )
    if not hasattr(box, "text_tower"):
        raise RefusedError(f"{recipe.method} needs gradients, so a local model; box {recipe.box} shows none")
    result = coop(box, task, tokens=recipe.prompt.tokens, seed=recipe.seed)
    ledger.test_pairs += len(task.test)  # its own test read, beside the template's
    return Outcome(
        zero_shot_accuracy=shot.zero_shot_accuracy,
        accuracy=result.accuracy,
        val_accuracy=result.val_accuracy,
        train_loss=result.train_loss,
        arrays={"context": np.asarray(result.context, np.float32)},
    )
