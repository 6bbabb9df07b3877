"""A tuned prompt folded for one frozen box: what is left of it once its text has been encoded.

A text prompt becomes one row a class. A pixel frame is added to the image, so it is data of a row in a batch. A head
is applied after. An artifact of a box whose towers cannot be asked apart is answered by its `Classifier` as a whole.

Letters in shapes: n images, C classes, E joint embedding width, H image side in pixels.
Knows nothing of names, versions or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.artifact import Artifact
from engine.classifier import Classifier
from engine.errors import ArtifactError, KeyholeError
from engine.folded import Folded
from engine.heads import Head, on_scores
from engine.protocols import Array, BlackBox, Towers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Served:
    """How an artifact answers: from image features, or as a whole. A gateway's has the classes alone."""

    classes: tuple[str, ...]
    """C names."""
    folded: Folded | None = None
    whole: Classifier | None = None
    """Answers by itself, from encoded images."""

    @property
    def frame(self) -> Array | None:
        """`(3, H, H)` float32, added to the image."""
        return None if self.folded is None else self.folded.frame

    @property
    def row_bytes(self) -> int:
        """Bytes of its arrays."""
        return 0 if self.folded is None else self.folded.nbytes


def fold(artifact: Artifact, box: BlackBox, width: int) -> Served:
    """Fold an artifact for an open box of its own kind, whose image features are `width` (E) wide.

    Raises:
        ArtifactError: The artifact was tuned on other weights, or does not fit the box.
    """
    meta = artifact.meta
    if (found := box.spec.identity) != meta["identity"]:
        differing = sorted(k for k in {**meta["identity"], **found} if meta["identity"].get(k) != found.get(k))
        raise ArtifactError(f"it was tuned on another {meta['box']}: {', '.join(differing)} differ")
    classes = tuple(meta["classes"])
    if not isinstance(box, Towers):
        return Served(classes=classes, whole=Classifier(artifact).open())
    if "features" not in box.spec.gives:
        return Served(classes=classes, whole=Classifier(artifact, box=box.retold(classes, meta["template"])))
    head = artifact.head()
    rows = _rows(artifact, box, head)
    frame = artifact.arrays.get("pixels")
    frame = None if frame is None or not frame.any() else frame.copy()
    side = box.spec.image_size
    if frame is not None and (frame.shape != (3, side, side) or "pixels" not in box.spec.accepts):
        raise ArtifactError(f"its frame is {frame.shape[-1]} pixels wide, which {box.spec.uri} does not take")
    for found_width in (None if rows is None else rows.shape[1], _width(head, meta["head"])):
        if found_width not in (None, width):
            raise ArtifactError(f"it holds features {found_width} wide, those of {box.spec.uri} are {width}")
    if rows is None and head is None:
        raise ArtifactError("it holds neither text nor a head")
    folded = Folded(text=rows, scale=box.scale, frame=frame, head=head, head_name=meta["head"])
    folded.outputs(np.full((1, width), width**-0.5, np.float32))  # what would fail later fails here
    return Served(classes=classes, folded=folded)


def refold(artifact: Artifact | None, box: Towers, classes: Sequence[str], template: str) -> Served:
    """Fold for other classes or another template: an artifact's context with them, or (None) the bare template.

    A frame of the artifact stays.

    Raises:
        TaskError: The classes or the template cannot be used.
        ArtifactError: The artifact has a head, which fits its own classes only.
    """
    bare = Artifact(meta={"classes": list(classes), "template": template, "head": None}, arrays={})
    asked = Classifier(artifact or bare, box=box.retold(classes, template))
    frame = None if artifact is None else artifact.arrays.get("pixels")
    frame = None if frame is None or not frame.any() else frame
    return Served(classes=tuple(classes), folded=Folded(text=asked.text_features(), scale=box.scale, frame=frame))


def _rows(artifact: Artifact, box: Towers, head: Head | None) -> Array | None:
    """`(C, E)`, from the artifact where they lie in it; None where they are not needed."""
    meta = artifact.meta
    if head is not None and not on_scores(meta["head"]):
        return None
    if (kept := artifact.arrays.get("text_features")) is not None:
        return kept.copy()  # the rest of the file is not kept in memory
    try:
        return Classifier(artifact, box=box.retold(tuple(meta["classes"]), meta["template"])).text_features()
    except KeyholeError as error:
        raise ArtifactError(str(error)) from error


def _width(head: Head | None, name: str | None) -> int | None:
    """E that a head on image features reads."""
    return None if head is None or on_scores(name or "") else head.width
