"""An open_clip model behind the keyhole: prompts and images in, features, scores or labels out, no gradient.

Weights are loaded in weights.py; the towers compute in text_tower.py and image_tower.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine import phases
from engine.boxes import BoxRequest, keep_only
from engine.boxes.clip.image_tower import ImageTower
from engine.boxes.clip.precision import computing, precision_of
from engine.boxes.clip.text_tower import TextTower
from engine.boxes.clip.tokenized_prompts import spelled
from engine.boxes.feature_cache import FeatureCache, cache_folder
from engine.errors import RecipeError, RefusedError, TaskError
from engine.images import Encoded, digest, one_by_one
from engine.preprocessing import Preprocess
from engine.protocols import GIVES, Array, BoxSpec, Outputs, Prompts, TextSpec, Work
from engine.task import ImageSource

OPTIONS = ("precision", "clip", "cache")
"""Options of a URI that every `ClipBox` knows:

precision: One of `precision.PRECISIONS`.
clip: `on` clamps the sum of an image and a pixel frame to [0, 1], as an API that takes 8-bit images does; off.
cache: `off` keeps no image features on disk (feature_cache.py), whatever KEYHOLE_CACHE says; on.
"""
KEPT_BYTES = 512 * 2**20
"""Projected images of one split are kept up to this size; larger ones are computed for each answer."""
_READ = 64
"""Approximate number of images staged at a time; bounds memory."""

logger = logging.getLogger(__name__)


class StagedImages:
    """A task's images in the box's process: features at once, what pixel prompts need on first use.

    Args:
        features: `(N, E)` float32, L2-normalised.
        project: Rows -> `ImageTower.project` of these images.
        keep: Whether all projected images are kept after their first use.
        block: Rows projected at a time where they are not kept.
    """

    def __init__(self, features: Array, project: Callable[[Sequence[int]], Tensor], *, keep: bool, block: int) -> None:
        self.features = features
        self._project = project
        self._keep = keep
        self._block = block
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def projected(self, rows: Array) -> Iterator[Tensor]:
        """`ImageTower.project` of these rows, in one part or several."""
        if self._keep:
            if self._kept is None:
                self._kept = self._project(range(len(self)))
            yield self._kept[torch.as_tensor(rows, device=self._kept.device)]
            return
        for start in range(0, len(rows), self._block):
            yield self._project([int(row) for row in rows[start : start + self._block]])


class ClipBox:
    """A `BlackBox` around an open_clip CLIP, CustomTextCLIP or CoCa model.

    Args:
        model: The frozen model: evaluation mode, float32.
        tokenizer: open_clip's for this model.
        preprocess: How it wants its images.
        request: The task's words, the device and the `OPTIONS`. With `gives` None, features are the richest kind.
        identity: What else must agree for an artifact to mean the same: weights hash, model, activation.
        vocabulary: Token ids that the model was trained on, where known; None: all. The tokenizer must decode them.

    Raises:
        RecipeError: An option's value is unknown or has no effect here.
        TaskError: The classes or the template do not fit the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[..., Tensor],
        preprocess: Preprocess,
        request: BoxRequest,
        *,
        identity: dict[str, Any],
        vocabulary: frozenset[int] | None = None,
    ) -> None:
        self._device = torch.device(request.device)
        self._precision = precision = precision_of(request)
        clip, self._cached = _switch(request, "clip", "off"), _switch(request, "cache", "on")
        self.model = model.eval().requires_grad_(False).to(self._device)
        self.preprocess = preprocess
        # Implementations are chosen in fp32, so that a canary finds mistakes and not the precision. Autocast does not
        # reach into packed layers.
        self.image_tower = ImageTower(self.model, preprocess, clip=clip, prepack=precision != "bf16")
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self.text_tower = self._text_tower(request.classes, request.template)
        self.scale = float(self.model.logit_scale.detach().exp())
        # A bias (SigLIP) is the same for all classes of a row: it does not change softmax or argmax.
        self._template_features: Array | None = None
        self._total = Work(sequences=self.text_tower.sequences, image_encodes=self.image_tower.encodes)
        text = self._text_spec()
        self.spec = BoxSpec(
            uri=request.uri,
            gives=frozenset(GIVES) if request.gives is None else request.gives,
            accepts=frozenset({"words", "pixels"} | ({"context"} if text is not None else set())),
            classes=request.classes,
            template=request.template,
            image_size=preprocess.size,
            text=text,
            identity={
                **identity,
                "preprocess": preprocess.as_dict(),
                **({"precision": precision} if precision != "fp32" else {}),
                **({"clip": True} if clip else {}),
            },
            path=f"text {_path(self.text_tower)}; image {_path(self.image_tower)}"
            + ("; framed images are clipped to [0, 1]" if clip else "")
            + f"; {precision}",
        )
        self._block = max(1, _READ // self.image_tower.batch) * self.image_tower.batch
        self._cache: FeatureCache | None = None

    def _text_tower(self, classes: Sequence[str], template: str) -> TextTower:
        path = "batched" if self._precision == "bf16" else "auto"
        return TextTower(self.model, self._tokenizer, tuple(classes), template, vocabulary=self._vocabulary, path=path)

    def _text_spec(self) -> TextSpec | None:
        context, vocabulary = self.text_tower.template_context, self._vocabulary
        if context is None:
            return None
        words = None if vocabulary is None else spelled(self._tokenizer, vocabulary)
        rows = _numpy(self.text_tower.known_rows)
        return TextSpec(context=_numpy(context), sigma=self.text_tower.sigma, vocabulary=rows, words=words)

    @torch.inference_mode()
    def stage(self, source: ImageSource) -> StagedImages:
        """Decode, preprocess and encode all images, once per machine where the cache is on.

        Features from the cache count as encoded: what a method costs must not depend on what ran before.

        Raises TaskError where there are no images, or one cannot be read.
        """
        if len(source) == 0:
            raise TaskError("no images to stage; every split that is used needs at least one")
        cache = self._open_cache()
        blocks = [range(start, min(start + self._block, len(source))) for start in range(0, len(source), self._block)]
        parts: dict[int, Array] = {}
        # Workers of a machine share the cache: each takes the blocks in its own order and finds those of the others.
        order = np.arange(len(blocks)) if cache is None else np.random.default_rng(os.getpid()).permutation(len(blocks))
        with computing(self._precision, self._device):
            for number in order:
                parts[number] = self._block_features(source, blocks[number], cache)
                phases.advance(sum(map(len, parts.values())))
        if cache is not None:
            cache.trim()
        return StagedImages(
            np.concatenate([parts[number] for number in range(len(blocks))]),
            lambda rows: self._projected(source, rows),
            keep=len(source) * self.image_tower.projected_bytes <= KEPT_BYTES,
            block=self._block,
        )

    def _block_features(self, source: ImageSource, rows: Sequence[int], cache: FeatureCache | None) -> Array:
        """`(n, E)` features of one block of images, from the cache, or encoded and saved to it."""
        images = one_by_one(source, rows)
        if cache is None:
            return self._encoded(images)
        first = next(images)
        if cache.may_hold(digest(first)):  # then hashes may suffice, without decoding
            contents = [digest(first), *map(digest, images)]
            found = cache.load(contents)
            if found is not None:
                self.image_tower.encodes += len(rows)
                logger.info("%d images' features came from the cache", len(rows))
                return found
            images = one_by_one(source, rows[1:])
        contents = []
        features = self._encoded(_noting(chain([first], images), contents))
        cache.save(contents, features)
        return features

    def _encoded(self, images: Iterable[Array | Encoded]) -> Array:
        """`(n, E)`."""
        return self._features(self.image_tower.encode(self._pixels(images)))

    def _open_cache(self) -> FeatureCache | None:
        """The feature cache for this model on this machine; None where it is off."""
        folder = cache_folder() if self._cached else None
        if folder is None:
            return None
        if self._cache is None or self._cache.folder != folder:
            with computing(self._precision, self._device):
                canary = self.image_tower.fingerprint()
            tower = self.image_tower
            way = {"way": tower.path, "batch": tower.batch, "device": self._device.type}
            self._cache = FeatureCache(folder, {"box": self.spec.identity, "canary": canary, **way})
        return self._cache

    def _projected(self, source: ImageSource, rows: Sequence[int]) -> Tensor:
        """`ImageTower.project` of these rows, read a block at a time."""
        blocks = [rows[start : start + self._block] for start in range(0, len(rows), self._block)]
        return torch.cat([self.image_tower.project(self._pixels(one_by_one(source, block))) for block in blocks])

    def _pixels(self, images: Iterable[Array | Encoded]) -> Tensor:
        return torch.from_numpy(self.preprocess.pixels(images)).to(self._device)

    @torch.inference_mode()
    def answer(self, prompts: Prompts, staged: StagedImages, rows: Array) -> Outputs:
        """The richest kind that the box gives, for P candidates on these rows.

        Features that do not depend on the candidate come back once: text (1, C, E) or image (1, B, E). NaN passes
        through.

        Raises:
            RefusedError: The box does not accept this kind of prompt.
            ValueError: A prompt has the wrong shape.
        """
        refused = prompts.needs() - self.spec.accepts
        if refused:
            raise RefusedError(
                f"box {self.spec.uri!r} does not accept {', '.join(sorted(refused))}; "
                f"it accepts {', '.join(sorted(self.spec.accepts))}"
            )
        with computing(self._precision, self._device):
            text, image = self._text(prompts), self._image(prompts, staged, rows)
        if len(text) == len(image) == 1 < prompts.count:
            text = np.broadcast_to(text, (prompts.count, *text.shape[1:]))
        return keep_only(Outputs(text=text, image=image, scale=self.scale), self.spec.gives)

    def _text(self, prompts: Prompts) -> Array:
        """`(P or 1, C, E)`."""
        if prompts.words is not None:
            if prompts.context is not None:
                raise ValueError("a prompt has words or a context before the class name, not both")
            return self._features(self.text_tower.encode_words(prompts.words))
        if prompts.context is None:
            if self._template_features is None:
                # A constant of the task that every process computes for itself: not booked, like opening.
                before = self.text_tower.sequences
                if self.spec.text is None:
                    self._template_features = self._features(self.text_tower.encode_words([self.spec.template]))
                else:
                    self._template_features = self._features(self.text_tower.encode(None))
                self.text_tower.sequences = before
            return self._template_features
        return self._features(self.text_tower.encode(self._tensor(prompts.context)))

    def _image(self, prompts: Prompts, staged: StagedImages, rows: Array) -> Array:
        """`(P or 1, B, E)`."""
        if prompts.pixels is None:
            return staged.features[rows][None]
        side = self.preprocess.size
        if prompts.pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels of shape {prompts.pixels.shape}: (P, 3, {side}, {side}) is wanted")
        frames = self._tensor(prompts.pixels)
        parts = [self.image_tower.encode_framed(part, frames) for part in staged.projected(np.asarray(rows))]
        return self._features(torch.cat(parts, 1))

    def pixels(self, images: Iterable[Array | Encoded]) -> Array:
        """As `protocols.Towers`."""
        return self.preprocess.pixels(images)

    @torch.inference_mode()
    def encode(self, pixels: Array, frames: Array | None = None) -> Array:
        """As `protocols.Towers`."""
        sums = self._tensor(pixels)
        if frames is not None:
            sums = sums + self._tensor(frames)
            sums = sums.clamp(0, 1) if self.image_tower.clip else sums
        with computing(self._precision, self._device):
            return self._features(self.image_tower.encode(sums))

    def retold(self, classes: Sequence[str], template: str) -> ClipBox:
        """As `protocols.Towers`. Image features are not kept on disk."""
        other = copy(self)
        other.text_tower = other._text_tower(classes, template)
        other._template_features, other._cached = None, False
        other.spec = replace(self.spec, classes=tuple(classes), template=template, text=other._text_spec())
        return other

    def _features(self, features: Tensor) -> Array:
        """Normalised features as an array; those rounded to bfloat16 are normalised again."""
        if features.dtype != torch.float32:
            features = F.normalize(features.float(), dim=-1)
        return _numpy(features)

    def knows(self, template: str) -> bool:
        """Whether the text tower can be asked this template."""
        return self.text_tower.knows(template)

    def work(self) -> Work:
        """Sequences and image encodes since the last call."""
        total = Work(sequences=self.text_tower.sequences, image_encodes=self.image_tower.encodes)
        before, self._total = self._total, total
        return Work(
            sequences=total.sequences - before.sequences, image_encodes=total.image_encodes - before.image_encodes
        )

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self._device)


def _switch(request: BoxRequest, name: str, default: str) -> bool:
    """Whether an option is on. Raises RecipeError for another value than on and off."""
    value = request.options.get(name, default)
    if value not in ("on", "off"):
        raise RecipeError(f"box {request.uri!r}: {name}={value}; it is on or off")
    return value == "on"


def _noting(images: Iterable[Array | Encoded], contents: list[str]) -> Iterator[Array | Encoded]:
    """The same images; the digest of each is appended to `contents` as it passes."""
    for image in images:
        contents.append(digest(image))
        yield image


def _path(tower: TextTower | ImageTower) -> str:
    return f"{tower.path} ({tower.why})" if tower.why else tower.path


def _numpy(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float32).numpy()
