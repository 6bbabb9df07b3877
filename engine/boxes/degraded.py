"""A wrapper that degrades any box as real services do: `?noise=0.1&round=2&topk=5&jpeg=60`.

Noise is a function of the prompt and the image, so the same request has the same answer on every worker.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy.special import log_softmax

from engine.errors import RecipeError
from engine.protocols import Array, BlackBox, Outputs, Prompts, Staged, Work
from engine.random_streams import Purpose, rng
from engine.task import ImageSource

OPTIONS = ("noise", "round", "topk", "jpeg")


@dataclass(frozen=True, kw_only=True, slots=True)
class Imperfections:
    """How a box is degraded, in the order in which it is applied."""

    jpeg: int | None = None
    """JPEG quality of incoming images, 1 to 95, before any pixel prompt is added."""
    noise: float | None = None
    """Standard deviation of the Gaussian noise on log-probabilities."""
    round: int | None = None
    """Decimals to which probabilities are rounded; those that round to 0 become half of the last decimal."""
    topk: int | None = None
    """Only the best k classes are given, with their log-probabilities."""

    @property
    def blurs_scores(self) -> bool:
        """Whether scores change, so that features cannot be given: they would reveal the original scores."""
        return not (self.noise is None and self.round is None and self.topk is None)


def take_options(uri: str, options: dict[str, str]) -> Imperfections | None:
    """Take the `OPTIONS` out of a box's options; None where it has none. Raises RecipeError for one out of range."""
    ranges = {"noise": (0.0, 100.0), "round": (1, 12), "topk": (1, 1000), "jpeg": (1, 95)}
    found: dict[str, float | int] = {}
    for name in OPTIONS:
        if name not in options:
            continue
        text, (low, high) = options.pop(name), ranges[name]
        try:
            value = type(low)(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            kind = "a whole number" if isinstance(low, int) else "a number"
            raise RecipeError(f"box {uri!r}: {name}={text} must be {kind} from {low} to {high}")
        found[name] = value
    return Imperfections(**found) if found else None  # type: ignore[arg-type]


def open_imperfect(
    uri: str,
    wrong: Imperfections,
    gives: frozenset[str] | None,
    open_inner: Callable[[frozenset[str] | None], BlackBox],
) -> BlackBox:
    """Open the inner box and wrap it.

    Args:
        uri: The box, for messages.
        wrong: How it is degraded.
        gives: What the wrapped box is narrowed to; None: all that its imperfections leave.
        open_inner: Opens the inner box, given what that should give.

    Raises RecipeError where `gives` asks for what the imperfections remove, or they have no effect on this box.
    """
    left = {"labels", "topk"} if wrong.topk is not None else {"labels", "topk", "scores"}
    if not wrong.blurs_scores:
        return ImperfectBox(open_inner(gives), wrong)
    if gives is not None and not gives <= left:
        raise RecipeError(
            f"box {uri!r}: with noise, round or topk it gives {', '.join(sorted(left))}, so it cannot give "
            f"{', '.join(sorted(gives - left))}; leave that out of gives="
        )
    inner = open_inner(None)
    if not inner.spec.gives & {"scores", "features"}:
        raise RecipeError(f"box {uri!r}: noise, round and topk change scores, and this box gives none")
    return ImperfectBox(inner, wrong, frozenset(gives or left))


class ImperfectBox:
    """A `BlackBox` around another.

    Args:
        inner: The original box.
        wrong: How it is degraded.
        gives: What the wrapper gives; None: all that the inner box gives.
    """

    def __init__(self, inner: BlackBox, wrong: Imperfections, gives: frozenset[str] | None = None) -> None:
        self.inner, self.wrong = inner, wrong
        told = {name: getattr(wrong, name) for name in OPTIONS if getattr(wrong, name) is not None}
        self.spec = replace(
            inner.spec,
            gives=inner.spec.gives if gives is None else gives,
            identity={**inner.spec.identity, "imperfect": told},
        )

    def stage(self, source: ImageSource) -> tuple[Staged, int]:
        """Stage the images, compressed where `jpeg` is set. Raises TaskError as the inner box does."""
        if self.wrong.jpeg is not None:
            source = Compressed(source, self.wrong.jpeg)
        return self.inner.stage(source), len(source)

    def answer(self, prompts: Prompts, staged: tuple[Staged, int], rows: Array) -> Outputs:
        """The inner box's answer, degraded. Raises what the inner box raises."""
        images, count = staged
        outputs = self.inner.answer(prompts, images, rows)
        if not self.wrong.blurs_scores:
            return outputs
        told = log_softmax(outputs.logits().astype(np.float64), axis=-1)
        if self.wrong.noise:
            shape = (count, told.shape[-1])
            added = [rng(key, 0, Purpose.DEGRADE).normal(size=shape)[rows] for key in _keys(prompts)]
            told = log_softmax(told + self.wrong.noise * np.stack(added), axis=-1)
        if self.wrong.round is not None:
            unit = 10.0**-self.wrong.round
            told = np.log(np.maximum(np.round(np.exp(told), self.wrong.round), unit / 2))
        if "scores" in self.spec.gives:
            return Outputs(scores=told.astype(np.float32))
        if "topk" in self.spec.gives:
            best = np.argsort(-told, axis=-1, kind="stable")[..., : self.wrong.topk or 5]
            return Outputs(topk=(best, np.take_along_axis(told, best, -1).astype(np.float32)))
        return Outputs(labels=told.argmax(-1))

    def knows(self, template: str) -> bool:
        """Whether the inner box can be asked a template in words."""
        return self.inner.knows(template)

    def work(self) -> Work:
        """Sequences and image encodes since the last call."""
        return self.inner.work()


@dataclass(frozen=True, slots=True)
class Compressed:
    """An `ImageSource` whose images are compressed by JPEG."""

    source: ImageSource
    quality: int

    def __len__(self) -> int:
        return len(self.source)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(h, w, 3)` of these rows, after compression."""
        return [self._compressed(image) for image in self.source.read(rows)]

    def _compressed(self, image: Array) -> Array:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
        return np.asarray(Image.open(buffer).convert("RGB"))


def _keys(prompts: Prompts) -> list[int]:
    """A seed for each candidate: a hash of its decoded prompt."""
    parts = [array for array in (prompts.context, prompts.pixels) if array is not None]
    keys = []
    for p in range(len(prompts)):
        digest = hashlib.blake2b(prompts.words[p].encode() if prompts.words else b"", digest_size=8)
        for part in parts:
            digest.update(np.ascontiguousarray(part[p], np.float32).tobytes())
        keys.append(int.from_bytes(digest.digest(), "big"))
    return keys
