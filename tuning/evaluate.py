"""Reading a finished artifact: its accuracy on a test split, here or on another box.

Knows nothing of how the artifact was found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.artifact import Artifact
from engine.boxes import open_box
from engine.core import Array, BlackBox, Outputs, Prompts
from engine.errors import ArtifactError
from engine.heads import inputs, on_scores
from engine.phases import phase
from tuning.outcome import restore_head
from tuning.tasks import load_task


def evaluate(
    artifact: Artifact, *, task_uri: str | None = None, box_uri: str | None = None, test_images: int | None = None
) -> dict[str, Any]:
    """Zero-shot and tuned accuracy on the test split of the artifact's own task and box, or of others.

    The whole split is read, or `test_images` of it, drawn by the artifact's seed as a run with this setting does.

    Raises ArtifactError where the artifact cannot be used there: other weights under the same name, another prompt
    width, a head for other features.
    """
    meta = artifact.meta
    own = meta["task"]
    task = load_task(
        task_uri or own["uri"], shots=own["shots"], seed=own["seed"], half=own["half"], test_images=test_images
    )
    with phase(f"opening {box_uri or meta['box']}"):
        box = open_box(box_uri or meta["box"], classes=task.classes, template=task.template)
    if box_uri is None and box.spec.identity != meta["identity"]:
        differing = sorted(k for k in meta["identity"] if meta["identity"][k] != box.spec.identity.get(k))
        raise ArtifactError(
            f"the artifact was tuned on another {meta['box']}: {', '.join(differing)} differ; "
            f"name a box on purpose with --box {meta['box']}"
        )
    with phase("encoding test images", len(task.test)):
        staged, rows = box.stage(task.test.source), np.arange(len(task.test))
    plain = box.answer(Prompts(count=1), staged, rows)
    right = (_predictions(artifact, box, plain, staged, rows, list(task.classes)) == task.test.labels).mean()
    return {
        "task": task.uri,
        "box": box.spec.uri,
        "method": meta["method"],
        "images": len(task.test),
        "images_of": task.test_of or len(task.test),
        "zero_shot_accuracy": float((plain.predictions()[0] == task.test.labels).mean()),
        "accuracy": float(right),
    }


def _predictions(
    artifact: Artifact, box: BlackBox, plain: Outputs, staged: Any, rows: Array, classes: list[str]
) -> Array:
    prompts = _prompts(artifact, box)
    prompted = box.answer(prompts, staged, rows) if prompts.needs() else plain
    if not artifact.meta.get("head"):
        return prompted.predictions()[0]
    name = artifact.meta["head"]
    read = inputs(name, prompted)
    if read is None:
        what = "scores" if on_scores(name) else "image features"
        raise ArtifactError(f"the artifact is a head on {what}, which this box does not give")
    width = read.shape[1] if on_scores(name) else artifact.arrays["text_features"].shape[1]
    if classes != artifact.meta["classes"] or read.shape[1] != width:
        raise ArtifactError("a head fits only the classes and the features that it was trained on")
    return restore_head(artifact.arrays).scores(read).argmax(-1)


def _prompts(artifact: Artifact, box: BlackBox) -> Prompts:
    """The artifact's prompt, checked against what this box takes."""
    context, pixels, words = (artifact.arrays.get(name) for name in ("context", "pixels", "words"))
    if context is not None and (box.spec.text is None or box.spec.text.context.shape[1] != context.shape[-1]):
        took = "no text context" if box.spec.text is None else f"vectors {box.spec.text.context.shape[1]} wide"
        raise ArtifactError(f"the artifact's context is {context.shape[-1]} wide, {box.spec.uri} takes {took}")
    if context is not None and context.ndim == 3 and list(box.spec.classes) != artifact.meta["classes"]:
        context = context.mean(0)  # classes that it was not tuned for get what its own have in common
    side = box.spec.image_size
    if pixels is not None and pixels.shape != (3, side, side):
        raise ArtifactError(f"the artifact's frame is {pixels.shape[-1]} pixels wide, {box.spec.uri} takes {side}")
    template = None if words is None else words.tobytes().decode()
    return Prompts(
        count=1,
        context=None if context is None else context[None],
        pixels=None if pixels is None else pixels[None],
        words=None if template in (None, box.spec.template) else (template,),
    )
