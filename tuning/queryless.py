"""Methods that search no prompt: the template itself, heads on returned features, white-box ceilings.

They pay in the same ledger: the training and validation images that they had to send once.
Knows nothing of run folders.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine import heads
from engine.errors import BudgetError, RecipeError, RefusedError, nearest
from engine.prompts.template_list import TEMPLATES
from engine.protocols import Array, Task
from engine.session import Session
from engine.tuning_loop import Look
from tuning.outcome import PLAIN, Outcome, check_head, of_head, of_prompt, of_templates, train_loss
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


def fit(recipe: Recipe, session: Session) -> Outcome:
    """Run the method of this name. Raises RefusedError on a box that lacks what it needs."""
    kind, _, name = recipe.method.partition(":")
    spec, ledger = session.spec, session.ledger
    if kind == "head":
        check_head(name, spec)
    if (recipe.method == ENSEMBLE or kind == "ceiling") and "features" not in spec.gives:
        raise RefusedError(
            f"{recipe.method} needs a box that gives features; {spec.uri} gives {', '.join(sorted(spec.gives))}"
        )
    due = 1 + session.size("val") / ledger.images
    if due * ledger.images > ledger.pairs_left:
        raise BudgetError(
            f"budget={recipe.budget:g}: {recipe.method} sends the training and validation images once, {due:.2f} "
            "evaluations; allow more"
        )
    template = np.zeros(session.space.dim, np.float32)
    train, val = session.read(template, "train"), session.read(template, "val")
    if recipe.method == ENSEMBLE:
        # The templates that the box knows, as many as the budget covers: an evaluation each.
        pool = session.templates()[: 1 + ledger.affordable(ledger.images)]
        if len(pool) > 1:
            session.evaluate(pool[1:])
        return of_templates(pool, template, session, plain=True)
    if kind == "head":
        return of_head(name, template, session, recipe.seed)
    if kind == "ceiling":
        return _ceiling(recipe, session)
    known = Look(
        theta=template, val_loss=float(val.losses[0]), val_accuracy=int(val.correct[0]) / session.size("val"),
        evaluations=ledger.evaluations, train_loss=float(train.losses[0]),
    )  # fmt: skip
    loss = train_loss(session, known, recipe.objective)
    return of_prompt(template, session, val_accuracy=known.val_accuracy, train_loss=loss)


def keeps_outputs(recipe: Recipe) -> bool:
    """Whether the method of this name reads more of an answer than how right it is."""
    return recipe.method != "zero-shot" or recipe.objective not in PLAIN


def _ceiling(recipe: Recipe, session: Session) -> Outcome:
    """A white-box reference: the images' features are the session's, the text tower is opened beside it."""
    from engine.boxes import open_box
    from tuning.white_box.coop import fit_coop

    spec = session.spec
    box: Any = open_box(
        recipe.box, classes=spec.classes, template=spec.template, device=recipe.device, threads=recipe.pool.threads
    )
    if not hasattr(box, "text_tower"):
        raise RefusedError(f"{recipe.method} needs gradients, so a local model; box {recipe.box} shows none")
    zero_shot = session.zero_shot()
    template = np.zeros(session.space.dim, np.float32)

    def examples(split: str) -> tuple[Array, Array]:
        image = session.outputs(template, split).image
        assert image is not None
        return image[0], session.splits[split].labels

    result = fit_coop(
        box, examples("train"), examples("val"), lambda: examples("test"),
        tokens=recipe.prompt.tokens, seed=recipe.seed,
    )  # fmt: skip
    assert result.accuracy is not None
    return Outcome(
        zero_shot_accuracy=int(zero_shot.correct[0]) / session.size("test"),
        accuracy=result.accuracy,
        val_accuracy=result.val_accuracy,
        train_loss=result.train_loss,
        arrays={"context": np.asarray(result.context, np.float32)},
    )
