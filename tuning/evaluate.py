"""Reading a finished artifact: its accuracy on a test split, here or on another box.

Knows nothing of how the artifact was found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.artifact import Artifact
from engine.boxes import open_box
from engine.core import Array, BlackBox, Outputs, Prompts, Task
from engine.errors import ArtifactError
from engine.heads import inputs, on_scores
from engine.phases import phase
from engine.threads import limited
from tuning.data.load_task import halve, load_pool, looked_over, part_of_test

AGREE = 0.01
"""How far an accuracy read again may be from the recorded one, at least two images: another device's roundings."""


def evaluate(
    artifact: Artifact,
    *,
    task_uri: str | None = None,
    box_uri: str | None = None,
    half: str | None = None,
    device: str = "cpu",
    test_images: int | None = None,
) -> dict[str, Any]:
    """Zero-shot and tuned accuracy on the test split of the artifact's own task and box, or of others.

    On another task, classes that a context per class was not tuned for get the mean of the contexts.

    Args:
        artifact: what `Artifact.load` gives.
        task_uri: a task that the user names; None: the artifact's own, which is never code.
        box_uri: a box that the user names; None: the artifact's own, whose identity must agree.
        half: all, base or new classes; None: those it was tuned on.
        device: where a local box computes, in torch's words.
        test_images: read so many, drawn by the artifact's seed as a run with this setting does; None: the whole split.

    Raises:
        ArtifactError: the artifact cannot be used there: other weights under the same name, other classes or another
            template under the same task, another prompt width, a head for other features; or the recorded accuracy
            is not found again.
    """
    meta = artifact.meta
    own = meta["task"]
    pool = load_pool(task_uri or own["uri"], allow_code=task_uri is not None)
    task = part_of_test(halve(pool, half or own["half"]), test_images, own["seed"])
    if task_uri is None and half is None:
        _check_task(artifact, task)
    looked_over(task, ("test",))
    with phase(f"opening {box_uri or meta['box']}"):
        box = open_box(box_uri or meta["box"], classes=task.classes, template=task.template, device=device)
    if box_uri is None and box.spec.identity != meta["identity"]:
        both = {**meta["identity"], **box.spec.identity}
        differing = sorted(k for k in both if meta["identity"].get(k) != box.spec.identity.get(k))
        raise ArtifactError(
            f"the artifact was tuned on another {meta['box']}: {', '.join(differing)} differ; "
            f"name a box on purpose with --box {meta['box']}"
        )
    with limited(1):  # as the run did
        with phase("encoding test images", len(task.test)):
            staged, rows = box.stage(task.test.source), np.arange(len(task.test))
        plain = box.answer(Prompts(count=1), staged, rows)
        predicted = _predictions(artifact, box, plain, staged, rows, list(task.classes))
    found = {
        "zero_shot_accuracy": float((plain.predictions()[0] == task.test.labels).mean()),
        "accuracy": float((predicted == task.test.labels).mean()),
    }
    as_recorded = task_uri is None and box_uri is None and half is None and len(rows) == meta["metrics"]["test_images"]
    recorded = meta["metrics"]["accuracy"] if as_recorded else None
    if recorded is not None:
        _check_recorded(artifact, found, len(rows))
    return {
        "task": task.uri,
        "box": box.spec.uri,
        "method": meta["method"],
        "images": len(rows),
        "images_of": task.test_of or len(rows),
        **found,
        "recorded_accuracy": recorded,
    }


def _check_task(artifact: Artifact, task: Task) -> None:
    """That the task is still the one that the artifact was tuned on."""
    ours, uri = artifact.meta["classes"], artifact.meta["task"]["uri"]
    if ours != list(task.classes):
        where = next((i for i, pair in enumerate(zip(ours, task.classes, strict=False)) if pair[0] != pair[1]), None)
        what = f"{len(ours)} and {len(task.classes)}"
        if where is not None:
            what = f"{ours[where]!r:.80} and {task.classes[where]!r:.80}"
        raise ArtifactError(
            f"the artifact's classes are not those of its task {uri} ({what}); name a task on purpose with --task"
        )
    if artifact.meta["template"] != task.template:
        raise ArtifactError(
            f"the artifact's template {artifact.meta['template']!r:.200} is not that of its task {uri}, "
            f"{task.template!r:.200}; name a task on purpose with --task"
        )


def _check_recorded(artifact: Artifact, found: dict[str, float], images: int) -> None:
    """That what the run measured is found again: where it is not, the artifact or the images are not what they were."""
    for name, accuracy in found.items():
        recorded = artifact.meta["metrics"][name]
        if abs(accuracy - recorded) > max(AGREE, 2 / images):
            raise ArtifactError(
                f"the artifact records {name} {recorded:.4f}, but {accuracy:.4f} is found: it or the task's images "
                f"have changed; to evaluate it all the same, name its task with --task {artifact.meta['task']['uri']}"
            )


def _predictions(
    artifact: Artifact, box: BlackBox, plain: Outputs, staged: Any, rows: Array, classes: list[str]
) -> Array:
    prompts = _prompts(artifact, box)
    prompted = box.answer(prompts, staged, rows) if prompts.needs() else plain
    head = artifact.head()
    if head is None:
        _check_finite(prompted.image, prompted.text, prompted.scores)
        return prompted.predictions()[0]
    name = artifact.meta["head"]
    read = inputs(name, prompted)
    if read is None:
        what = "scores" if on_scores(name) else "image features"
        raise ArtifactError(f"the artifact is a head on {what}, which this box does not give")
    if classes != artifact.meta["classes"] or read.shape[1] != head.width:
        raise ArtifactError("a head fits only the classes and the features that it was trained on")
    with np.errstate(over="ignore", invalid="ignore"):
        scores = head.scores(read)
    _check_finite(scores)
    return scores.argmax(-1)


def _check_finite(*answers: Array | None) -> None:
    for answer in answers:
        if answer is not None and not np.isfinite(answer).all():
            raise ArtifactError("the answers to the artifact's prompt are not finite numbers; tune it again")


def _prompts(artifact: Artifact, box: BlackBox) -> Prompts:
    """The artifact's prompt, checked against what this box takes; what equals the template's own is left to the box."""
    context, pixels, spec = artifact.arrays.get("context"), artifact.arrays.get("pixels"), box.spec
    if context is not None and (spec.text is None or spec.text.context.shape[1] != context.shape[-1]):
        took = "no text context" if spec.text is None else f"vectors {spec.text.context.shape[1]} wide"
        raise ArtifactError(f"the artifact's context is {context.shape[-1]} wide, {spec.uri} takes {took}")
    if context is not None and context.ndim == 3 and list(spec.classes) != artifact.meta["classes"]:
        context = context.mean(0)  # classes that it was not tuned for get what its own have in common
    if context is not None and spec.text is not None and context.shape[-2:] == spec.text.context.shape:
        context = None if (context == spec.text.context).all() else context
    side, words = spec.image_size, artifact.words()
    if pixels is not None and pixels.shape != (3, side, side):
        raise ArtifactError(f"the artifact's frame is {pixels.shape[-1]} pixels wide, {spec.uri} takes {side}")
    return Prompts(
        count=1,
        context=None if context is None else context[None],
        pixels=None if pixels is None or not pixels.any() else pixels[None],
        words=None if words in (None, spec.template) else (words,),
    )
