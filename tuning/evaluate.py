"""Reading a finished artifact: its accuracy on a test split, here or on another box.

Knows nothing of how the artifact was found.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.artifact import Artifact
from engine.classifier import Classifier
from engine.errors import ArtifactError, TaskError
from engine.phases import phase
from engine.task import Split, Task
from tuning.data.load_task import halve, load_pool, looked_over, part_of_test

AGREE = 0.01
"""How far an accuracy read again may be from the recorded one, at least two images: another device's roundings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a split says of a classifier. Accuracies are fractions of 1."""

    images: int
    zero_shot_accuracy: float
    """Of the bare template on the same box."""
    accuracy: float


def measure(classifier: Classifier, split: Split) -> Evaluation:
    """Accuracy of a classifier on images whose labels are known.

    Args:
        classifier: Bound to any box.
        split: Images and labels, which count in the order of `classifier.classes`.

    Raises:
        TaskError: The split is empty or has labels beyond the classes; an image cannot be read.
        ArtifactError: The artifact does not fit its box.
    """
    if not len(split) or split.labels.max() >= len(classifier.classes):
        raise TaskError(
            f"the split has {len(split)} images with labels up to {split.labels.max(initial=0)}, the classifier "
            f"{len(classifier.classes)} classes; give a split of the task that it is for"
        )
    with phase("encoding test images", len(split)):
        tuned, plain = classifier.answers(split.source)
    found = [float((outputs.predictions()[0] == split.labels).mean()) for outputs in (plain, tuned)]
    return Evaluation(images=len(split), zero_shot_accuracy=found[0], accuracy=found[1])


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
    classifier = Classifier(artifact, device=device).open(box_uri, classes=task.classes, template=task.template)
    found = measure(classifier, task.test)
    as_recorded = task_uri is None and box_uri is None and half is None
    as_recorded = as_recorded and found.images == meta["metrics"]["test_images"]
    recorded = meta["metrics"]["accuracy"] if as_recorded else None
    if recorded is not None:
        _check_recorded(artifact, found)
    return {
        "task": task.uri,
        "box": classifier.box.spec.uri,
        "method": meta["method"],
        "images": found.images,
        "images_of": task.test_of or found.images,
        "zero_shot_accuracy": found.zero_shot_accuracy,
        "accuracy": found.accuracy,
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


def _check_recorded(artifact: Artifact, found: Evaluation) -> None:
    """That what the run measured is found again: where it is not, the artifact or the images are not what they were."""
    for name in ("zero_shot_accuracy", "accuracy"):
        recorded, accuracy = artifact.meta["metrics"][name], asdict(found)[name]
        if abs(accuracy - recorded) > max(AGREE, 2 / found.images):
            raise ArtifactError(
                f"the artifact records {name} {recorded:.4f}, but {accuracy:.4f} is found: it or the task's images "
                f"have changed; to evaluate it all the same, name its task with --task {artifact.meta['task']['uri']}"
            )
