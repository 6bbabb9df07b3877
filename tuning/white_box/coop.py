"""White-box references by back-propagation: what a prompt could reach if the box were not black. For reports only.

`ceiling:coop` is CoOp (Zhou et al. 2022, arXiv 2109.01134): M context vectors shared by all classes, cross-entropy on
the few-shot images, gradients through the text tower. Ours differs from the paper in the optimiser: full-batch Adam
with a cosine rate, on image features of one evaluation view; CoOp runs SGD (0.002) on augmented batches of 32.
The step kept is the one of lowest validation cross-entropy among about 20 looks, the template itself included.

These need a box that holds its weights here and shows them (`box.text_tower`), so no budget is charged.
Knows nothing of search methods, ledgers or Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.errors import RecipeError, RefusedError
from engine.protocols import Array, BlackBox, Prompts
from engine.random_streams import Purpose, rng
from engine.task import Split, Task

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
    accuracy: float | None = None
    """On the test split; None where it has not been read."""
    history: tuple[dict[str, float], ...]
    """A row a look: step, train_loss, val_loss, val_accuracy."""


def coop(
    box: BlackBox, task: Task, *, tokens: int | None = None, steps: int = 300, lr: float = RATE, seed: int = 1
) -> CeilingResult:
    """CoOp on a local box, and its accuracy on the test split, which is read once, at the end.

    Args:
        box: a local box that gives features.
        task: its three splits.
        tokens: M. None: the template's own. Fewer: its last ones. More: random ones before them.
        steps: Adam steps.
        lr: Adam's rate in units of theta (the token embedding's standard deviation).
        seed: for random tokens; nothing else is random.

    Raises:
        RefusedError: a box without an open text tower, or that gives no features.
        RecipeError: a setting out of range.
    """
    train, val = ((encode(box, split), split.labels) for split in (task.train, task.val))
    found = fit_coop(box, train, val, tokens=tokens, steps=steps, lr=lr, seed=seed)
    right = (encode(box, task.test) @ found.text.T).argmax(-1) == task.test.labels
    return replace(found, accuracy=float(right.mean()))


def encode(box: BlackBox, split: Split) -> Array:
    """`(n, E)` float32 image features of a split, as the box gives them. Raises RefusedError where it gives none."""
    outputs = box.answer(Prompts(count=1), box.stage(split.source), np.arange(len(split)))
    if outputs.image is None:
        raise RefusedError(f"box {box.spec.uri!r} gives {', '.join(sorted(box.spec.gives))}; a ceiling needs features")
    return outputs.image[0]


def fit_coop(
    box: BlackBox,
    train: tuple[Array, Array],
    val: tuple[Array, Array],
    *,
    tokens: int | None = None,
    steps: int = 300,
    lr: float = RATE,
    seed: int = 1,
) -> CeilingResult:
    """CoOp on image features `(n, E)` and labels `(n,)`. Arguments and errors as of `coop`."""
    import torch
    from torch.nn.functional import cross_entropy

    from engine.boxes.clip.box import ClipBox

    if not isinstance(box, ClipBox) or box.text_tower.template_context is None:
        raise RefusedError(
            f"box {box.spec.uri!r} shows no text tower that takes contexts; ceiling:coop needs a local one"
        )
    if steps < 1 or not lr > 0 or (tokens is not None and tokens < 1):
        raise RecipeError(f"{steps=}, {lr=}, {tokens=}: steps and tokens must be 1 or more, lr above 0")
    tower: Any = box.text_tower
    scale = float(box.model.logit_scale.detach().exp())
    context = _start(tower.template_context, tower.sigma, tokens, seed).clone().requires_grad_()
    data = [
        (torch.from_numpy(features).to(context.device), torch.from_numpy(labels.astype(np.int64)).to(context.device))
        for features, labels in (train, val)
    ]
    adam = torch.optim.Adam([context], lr=lr * tower.sigma)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    history: list[dict[str, float]] = []
    best: tuple[Array, Array, dict[str, float]] | None = None
    for step in range(steps + 1):
        text = tower.encode(context[None])[0]
        losses = [cross_entropy(scale * features @ text.T, labels) for features, labels in data]
        if step % max(steps // LOOKS, 1) == 0 or step == steps:
            features, labels = data[1]
            hits = ((features @ text.T).argmax(-1) == labels).double().mean()
            train_loss, val_loss = (float(loss.detach()) for loss in losses)
            look = {"step": float(step), "train_loss": train_loss, "val_loss": val_loss, "val_accuracy": float(hits)}
            history.append(look)
            if best is None or val_loss < best[2]["val_loss"]:
                best = (_numpy(context), _numpy(text), look)
        if step < steps:
            adam.zero_grad()
            losses[0].backward()
            adam.step()
            cosine.step()
    assert best is not None, "the template itself is the first look"
    told = {name: value for name, value in best[2].items() if name != "step"}
    return CeilingResult(context=best[0], text=best[1], history=tuple(history), **told)


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
