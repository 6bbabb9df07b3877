"""What a run leaves behind, as something that classifies images: prompt, head and box.

An artifact (artifact.py) is its files; a `Classifier` is an artifact with a box to ask, its own one or another.
Images are read one at a time and encoded in blocks, so that memory does not grow with their number.

Letters in shapes: n images, C classes, M context tokens, W token width, H image side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engine import phases
from engine.artifact import Artifact
from engine.boxes import open_box
from engine.errors import ArtifactError, RefusedError, TaskError
from engine.folded import Folded, check_finite, probabilities_of, through_head
from engine.images import Given, ImageLike, as_many
from engine.protocols import Array, BlackBox, Outputs, Prompts, Staged
from engine.task import ImageSource, Subset
from engine.threads import limited

BLOCK = 64
"""Images that are encoded and answered at a time."""

Ask = Callable[[Staged, Array], Outputs]
"""Staged images and which of them -> the answer for one candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The answer for one image."""

    label: str
    """A class name."""
    probability: float
    """Of this label; NaN where the box gives labels alone."""
    probabilities: Array
    """`(C,)` float64 of all classes, as `Classifier.predict` has them."""


class Classifier:
    """A tuned prompt or head that answers for images.

    Nothing that it does is booked: `ledger` is the account of the run that made it.

    Args:
        artifact: What the run left.
        device: Where its own box computes, in torch's words.
        box: An open box to ask, see `bind`; None: its own, opened when first asked.

    Raises:
        ArtifactError: The artifact does not fit this box.
    """

    def __init__(self, artifact: Artifact, *, device: str = "cpu", box: BlackBox | None = None) -> None:
        self.artifact, self.device = artifact, device
        self._head = artifact.head()
        self._box = box
        self._prompts = Prompts(count=1) if box is None else self._prompts_for(box)
        self._text: Array | None = None  # (1, C, E): the tuned text features, once the box has given them

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Classifier:
        """The classifier in an artifact folder, or in a run folder. Its box is opened when it is first asked.

        Args:
            folder: What `save` or `keyhole tune` wrote.
            device: Where the box computes: also another than it was tuned on.

        Raises:
            ArtifactError: There is none, it is damaged, or of another version.
        """
        return cls(Artifact.load(folder), device=device)

    def save(self, folder: str | Path) -> Path:
        """Write the artifact, whole or not at all. Raises ArtifactError where it could not be read back."""
        return self.artifact.save(folder)

    # -----------------------------------------------------------------------------------------------------------------
    # The box that it asks

    @property
    def box(self) -> BlackBox:
        """The box that it asks; its own is opened here. Raises as `open` does."""
        if self._box is None:
            own = self.open()
            self._box, self._prompts = own._box, own._prompts
        assert self._box is not None
        return self._box

    def bind(self, box: BlackBox) -> Classifier:
        """The same artifact asking another open box, perhaps for other classes.

        Classes that a context per class was not tuned for get the mean of the contexts.

        Raises:
            ArtifactError: The prompt is of another width or size than this box takes, or there is a head and the
                classes are others.
        """
        return Classifier(self.artifact, device=self.device, box=box)

    def open(
        self, uri: str | None = None, *, classes: Sequence[str] | None = None, template: str | None = None
    ) -> Classifier:
        """Open a box and bind it.

        Args:
            uri: A box that the user names; None: the artifact's own, whose identity must agree.
            classes: C class names; None: those that it was tuned for.
            template: A sentence with one `{}`; None: the one that it was tuned from.

        Raises:
            ArtifactError: As `bind`, or the artifact was tuned on other weights under the same name.
            KeyholeError: As `open_box`.
        """
        meta = self.artifact.meta
        with phases.phase(f"opening {uri or meta['box']}"):
            box = open_box(
                uri or meta["box"],
                classes=meta["classes"] if classes is None else classes,
                template=template or meta["template"],
                device=self.device,
            )
        found = box.spec.identity
        if uri is None and found != self.identity:
            differing = sorted(k for k in {**self.identity, **found} if self.identity.get(k) != found.get(k))
            raise ArtifactError(
                f"the artifact was tuned on another {meta['box']}: {', '.join(differing)} differ; "
                f"name a box on purpose with --box {meta['box']}"
            )
        return self.bind(box)

    # -----------------------------------------------------------------------------------------------------------------
    # What it says of images

    def predict(self, images: ImageLike | Iterable[ImageLike]) -> tuple[list[str], Array]:
        """Labels and probabilities.

        Args:
            images: One or many: paths, encoded bytes, PIL images, uint8 RGB arrays `(h, w, 3)`, also mixed.

        Returns:
            n class names, and `(n, C)` float64 probabilities, C in the order of `classes`: softmax of `scores`. From
            a box that gives the top k they are those of the k, renormalised, and 0 elsewhere; from one that gives
            labels alone they are NaN.

        Raises:
            TaskError: An image cannot be read; the message names it.
            ArtifactError: The artifact does not fit its box.
        """
        found = []
        for answer in self.each(images):
            if isinstance(answer, TaskError):
                raise answer
            found.append(answer)
        table = [answer.probabilities for answer in found]
        return [answer.label for answer in found], np.array(table).reshape(len(table), len(self.classes))

    def scores(self, images: ImageLike | Iterable[ImageLike]) -> Array:
        """`(n, C)` float32 logits, or log-probabilities up to a constant a row, C in the order of `classes`.

        Args:
            images: As of `predict`.

        Raises:
            RefusedError: The box gives labels or the top k alone.
            TaskError: An image cannot be read; the message names it.
            ArtifactError: The artifact does not fit its box.
        """
        spec = self.box.spec
        if not spec.gives & {"scores", "features"}:
            raise RefusedError(
                f"{spec.uri} gives {', '.join(sorted(spec.gives))} and neither scores nor features; use `predict`"
            )
        tables = [np.empty((0, len(spec.classes)), np.float32)]
        for outputs in self._whole_blocks(images, self._answer):
            tables.append(outputs.logits()[0])
        return np.concatenate(tables)

    def features(self, images: ImageLike | Iterable[ImageLike]) -> Array:
        """`(n, E)` float32 L2-normalised image features under the tuned prompt, before any head.

        Args:
            images: As of `predict`.

        Raises:
            RefusedError: The box gives no features.
            TaskError: An image cannot be read; the message names it.
            ArtifactError: The artifact does not fit its box.
        """
        self._check_features()
        tables = [np.empty((0, self.text_features().shape[1]), np.float32)]
        for outputs in self._whole_blocks(images, self._prompted):
            assert outputs.image is not None
            tables.append(outputs.image[0])
        return np.concatenate(tables)

    def fold(self) -> Folded:
        """What it comes down to besides the frozen image tower: the text tower is not needed any more.

        Raises:
            RefusedError: The box gives no features.
            ArtifactError: The artifact does not fit its box.
        """
        told = self._text_answer()
        assert told.text is not None
        frame = None if self._prompts.pixels is None else self._prompts.pixels[0]
        return Folded(
            text=told.text[0],
            scale=told.scale,
            frame=frame,
            head=self._head,
            head_name=self.artifact.meta["head"],
        )

    def each(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Prediction | TaskError]:
        """An answer for each image in turn, or the reason why it cannot be read. Takes images as it goes on.

        Args:
            images: As of `predict`.

        Raises:
            ArtifactError: The artifact does not fit its box.
        """
        for outputs, errors in self._blocks(images, self._answer):
            answers = iter(() if outputs is None else self._predictions(outputs))
            for error in errors:
                yield error or next(answers)

    def answers(self, source: ImageSource) -> tuple[Outputs, Outputs]:
        """Its own answer, and the bare template's, for the same images in one piece: what an evaluation compares.

        Returns:
            For one candidate (P = 1): scores where there is a head, else the richest kind that the box gives.

        Raises:
            TaskError: An image cannot be read; the message names it.
            ArtifactError: The artifact does not fit the box, or the answers are not finite.
        """
        box = self.box
        with limited(1):
            staged, rows = box.stage(source), np.arange(len(source))
            return self._answer(staged, rows), box.answer(Prompts(count=1), staged, rows)

    def text_features(self) -> Array:
        """`(C, E)` float32 L2-normalised features of its classes under its prompt, or under its box's template.

        Raises:
            RefusedError: The box gives no features.
            ArtifactError: They are not finite.
        """
        text = self._text_answer().text
        assert text is not None
        return text[0]

    # -----------------------------------------------------------------------------------------------------------------
    # What is known of it

    @property
    def classes(self) -> tuple[str, ...]:
        """C class names: those of the box that it is bound to."""
        return tuple(self.artifact.meta["classes"]) if self._box is None else tuple(self._box.spec.classes)

    @property
    def ledger(self) -> Mapping[str, int | float | None]:
        """What the run that made it spent."""
        return self.artifact.meta["ledger"]

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What that run measured (`artifact_schema.Metrics`)."""
        return self.artifact.meta["metrics"]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What must agree for the artifact to mean the same: weights hash, preprocessing, activation."""
        return self.artifact.meta["identity"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it was computed: device, builds, CPU. It need not agree."""
        return self.artifact.meta["provenance"]

    # -----------------------------------------------------------------------------------------------------------------

    def _check_features(self) -> None:
        spec = self.box.spec
        if "features" not in spec.gives:
            raise RefusedError(f"{spec.uri} gives {', '.join(sorted(spec.gives))} and no features; name another --box")

    def _text_answer(self) -> Outputs:
        """The box's answer to the tuned text prompt, whose text features are those of any image."""
        self._check_features()
        with limited(1):
            any_image = self.box.stage(Given((np.zeros((8, 8, 3), np.uint8),)))
            told = self.box.answer(replace(self._prompts, pixels=None), any_image, np.arange(1))
        check_finite(told.text)
        return told

    def _whole_blocks(self, images: ImageLike | Iterable[ImageLike], ask: Ask) -> Iterator[Outputs]:
        """Block by block: the answer for all images. Raises TaskError for one that cannot be read."""
        for outputs, errors in self._blocks(images, ask):
            for error in filter(None, errors):
                raise error
            assert outputs is not None
            yield outputs

    def _blocks(
        self, images: ImageLike | Iterable[ImageLike], ask: Ask
    ) -> Iterator[tuple[Outputs | None, list[TaskError | None]]]:
        """Block by block: the answer for the images that can be read, and for every image what is wrong with it."""
        left, done = iter(as_many(images)), 0
        while some := tuple(islice(left, BLOCK)):
            box, source = self.box, Given(some, done)
            with limited(1), phases.after(done):
                rows = tuple(range(len(source)))
                errors: list[TaskError | None] = [None] * len(source)
                try:
                    staged = box.stage(source)
                except TaskError:
                    errors = [source.wrong(row) for row in rows]
                    if not any(errors):
                        raise
                    rows = tuple(row for row in rows if errors[row] is None)
                    staged = box.stage(Subset(source, rows)) if rows else None
                outputs = ask(staged, np.arange(len(rows))) if rows else None
            done += len(some)
            yield outputs, errors

    def _predictions(self, outputs: Outputs) -> Iterator[Prediction]:
        """One for each row of an answer."""
        classes = self.classes
        for label, row in zip(outputs.predictions()[0], probabilities_of(outputs, len(classes)), strict=True):
            yield Prediction(label=classes[label], probability=float(row[label]), probabilities=row)

    def _answer(self, staged: Staged, rows: Array) -> Outputs:
        """The box's answer to the tuned prompt, through the head where there is one."""
        outputs = self._prompted(staged, rows)
        if self._head is None:
            check_finite(outputs.image, outputs.text, outputs.scores)
            return outputs
        return through_head(self._head, self.artifact.meta["head"], outputs)

    def _prompted(self, staged: Staged, rows: Array) -> Outputs:
        """The box's answer to the tuned prompt. The text tower is asked for it once, where its features come back."""
        box = self.box
        if self._text is not None:
            return replace(box.answer(Prompts(count=1), staged, rows), text=self._text)
        outputs = box.answer(self._prompts, staged, rows)
        if self._prompts.pixels is None and outputs.image is not None:
            self._text = outputs.text
        return outputs

    def _prompts_for(self, box: BlackBox) -> Prompts:
        """The prompt, checked against what this box takes; what equals the template's own is left to the box."""
        artifact, spec = self.artifact, box.spec
        context, pixels, words = artifact.arrays.get("context"), artifact.arrays.get("pixels"), artifact.words()
        same_classes = list(spec.classes) == artifact.meta["classes"]
        if self._head is not None and not same_classes:
            raise ArtifactError("a head fits only the classes and the features that it was trained on")
        if context is not None and (spec.text is None or spec.text.context.shape[1] != context.shape[-1]):
            took = "no text context" if spec.text is None else f"vectors {spec.text.context.shape[1]} wide"
            raise ArtifactError(f"the artifact's context is {context.shape[-1]} wide, {spec.uri} takes {took}")
        if context is not None and context.ndim == 3 and not same_classes:
            context = context.mean(0)  # classes that it was not tuned for get what its own have in common
        if context is not None and spec.text is not None and context.shape[-2:] == spec.text.context.shape:
            context = None if (context == spec.text.context).all() else context
        side = spec.image_size
        if pixels is not None and pixels.shape != (3, side, side):
            raise ArtifactError(f"the artifact's frame is {pixels.shape[-1]} pixels wide, {spec.uri} takes {side}")
        return Prompts(
            count=1,
            context=None if context is None else context[None],
            pixels=None if pixels is None or not pixels.any() else pixels[None],
            words=None if words in (None, spec.template) else (words,),
        )
