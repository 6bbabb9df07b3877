"""White-box references by back-propagation: what a prompt could reach if the box were not black. For reports only.

`ceiling:coop` is CoOp (Zhou et al. 2022, arXiv 2109.01134): M context vectors shared by all classes, cross-entropy on
the few-shot images, gradients through the text tower. Ours differs from the paper in the optimiser: full-batch Adam
with a cosine rate, on image features of one evaluation view; CoOp runs SGD (0.002) on augmented batches of 32.
The step kept is the one of lowest validation cross-entropy among about 20 looks, the template itself included.

These need a box that holds its weights here and shows them (`box.text_tower`), so no budget is charged.
Knows nothing of search methods, ledgers or Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import RecipeError, RefusedError
from engine.protocols import Array, Prompts, Split, Task
from engine.random_streams import Purpose, rng

LOOKS = 20
RATE = 0.2
"""Adam's rate in units of theta: fractions of the token embedding's standard deviation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CeilingResult:
    """What a white-box run ended with; all but `accuracy` belong to the step that validation chose."""

    context: Array
    """`(M, W)` float32."""
    text: Array
    """`(C, E)` float32 class features under that context: all that a classifier needs."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    accuracy: float | None
    """On the test split, read once, at the end; None where no test was asked for."""
    history: tuple[dict[str, float], ...]
    """A row a look: step, train_loss, val_loss, val_accuracy."""


def coop(
    box: Any, task: Task, *, tokens: int | None = None, steps: int = 300, lr: float = RATE, seed: int = 1
) -> CeilingResult:
    """CoOp on a local box.

    Args:
        box: a box with a `text_tower` that takes contexts, and that gives features.
        task: its train, val and (once, at the end) test splits.
        tokens: M. None: the template's own. Fewer: its last ones. More: random ones before them.
        steps: Adam steps.
        lr: Adam's rate in units of theta (the token embedding's standard deviation, `box.text_tower.sigma`).
        seed: for random tokens; nothing else is random.

    Raises:
        RefusedError: a box without an open text tower, or that gives no features.
        RecipeError: a setting out of range.
    """
    train, val = encode(box, task.train), encode(box, task.val)
    return fit_coop(
        box,
        (train, task.train.labels),
        (val, task.val.labels),
        lambda: (encode(box, task.test), task.test.labels),
        tokens=tokens,
        steps=steps,
        lr=lr,
        seed=seed,
    )


def encode(box: Any, split: Split) -> Array:
    """`(n, E)` float32 image features of a split, as the box gives them."""
    outputs = box.answer(Prompts(count=1), box.stage(split.source), np.arange(len(split)))
    if outputs.image is None:
        raise RefusedError(f"box {box.spec.uri!r} gives {', '.join(sorted(box.spec.gives))}; a ceiling needs features")
    return outputs.image[0]


def fit_coop(
    box: Any,
    train: tuple[Array, Array],
    val: tuple[Array, Array],
    test: Callable[[], tuple[Array, Array]] | None = None,
    *,
    tokens: int | None = None,
    steps: int = 300,
    lr: float = RATE,
    seed: int = 1,
) -> CeilingResult:
    """CoOp on image features `(n, E)` and labels `(n,)`; `test` is called once, when training has ended."""
    import torch
    from torch.nn.functional import cross_entropy

    tower = getattr(box, "text_tower", None)
    if tower is None or tower.template_context is None:
        raise RefusedError(
            f"box {box.spec.uri!r} shows no text tower that takes contexts; ceiling:coop needs a local one"
        )
    if steps < 1 or not lr > 0 or (tokens is not None and tokens < 1):
        raise RecipeError(f"{steps=}, {lr=}, {tokens=}: steps and tokens must be 1 or more, lr above 0")
    scale = float(box.model.logit_scale.detach().exp())
    start = _start(tower.template_context, tower.sigma, tokens, seed)
    device = start.device
    data = [
        (torch.from_numpy(features).to(device), torch.from_numpy(labels.astype(np.int64)).to(device))
        for features, labels in (train, val)
    ]
    context = start.clone().requires_grad_()
    adam = torch.optim.Adam([context], lr=lr * tower.sigma)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    history: list[dict[str, float]] = []
    best: tuple[Array, Array, dict[str, float]] | None = None
    every = max(steps // LOOKS, 1)
    for step in range(steps + 1):
        text = tower.encode(context[None])[0]
        losses = [cross_entropy(scale * features @ text.T, labels) for features, labels in data]
        if step % every == 0 or step == steps:
            features, labels = data[1]
            hits = ((features @ text.T).argmax(-1) == labels).double().mean()
            history.append(
                {
                    "step": float(step),
                    "train_loss": float(losses[0].detach()),
                    "val_loss": float(losses[1].detach()),
                    "val_accuracy": float(hits),
                }
            )
            if best is None or history[-1]["val_loss"] < best[2]["val_loss"]:
                best = (_numpy(context), _numpy(text), history[-1])
        if step < steps:
            adam.zero_grad()
            losses[0].backward()
            adam.step()
            cosine.step()
    assert best is not None, "the template itself is the first look"
    accuracy = None
    if test is not None:
        images, truth = test()
        accuracy = float(((images @ best[1].T).argmax(-1) == truth).mean())
    return CeilingResult(
        context=best[0],
        text=best[1],
        train_loss=best[2]["train_loss"],
        val_loss=best[2]["val_loss"],
        val_accuracy=best[2]["val_accuracy"],
        accuracy=accuracy,
        history=tuple(history),
    )


CEILINGS: dict[str, Callable[..., CeilingResult]] = {"coop": coop}
"""`ceiling:NAME` -> `(box, task, *, seed, ...) -> CeilingResult`."""


def _start(template: Any, sigma: float, tokens: int | None, seed: int) -> Any:
    """`(M, W)`: the template's context, cut or filled in front to `tokens`."""
    import torch

    own = template.detach().float()
    if tokens is None or tokens <= len(own):
        start = own if tokens is None else own[len(own) - tokens :]
        if not len(start):
            raise RecipeError("this template has no words before the class name; give tokens=1 or more to CoOp")
        return start
    fill = sigma * rng(seed, 0, Purpose.WEIGHTS).standard_normal((tokens - len(own), own.shape[1]))
    return torch.cat([torch.from_numpy(fill.astype(np.float32)).to(own.device), own])


def _numpy(values: Any) -> Array:
    return values.detach().cpu().numpy().astype(np.float32, copy=True)
