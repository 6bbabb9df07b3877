"""An open_clip model behind the keyhole: prompts and images in, features, scores or labels out, no gradient.

Knows nothing of where the weights came from (weights.py) or of how the towers compute (text_tower.py, image_tower.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.boxes import keep_only
from engine.boxes.image_tower import ImageTower
from engine.boxes.text_tower import TextTower
from engine.core import GIVES, Array, BoxSpec, ImageSource, Outputs, Prompts, TextSpec, Work
from engine.errors import RefusedError, TaskError
from engine.images import Preprocess

_READ = 64
"""Images decoded at a time, so that a task's full-size images never lie in memory together."""


class StagedImages:
    """A task's images where the box lives: features at once, what pixel prompts need on first use."""

    def __init__(self, source: ImageSource, features: Array, project: Callable[[ImageSource], Tensor]) -> None:
        self.features = features
        """`(N, E)` float32, L2-normalised."""
        self._source = source
        self._project = project
        self._projected: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def projected(self) -> Tensor:
        """`ImageTower.project` of all N images."""
        if self._projected is None:
            self._projected = self._project(self._source)
        return self._projected


class ClipBox:
    """A `BlackBox` around an open_clip CLIP, CustomTextCLIP or CoCa model.

    Args:
        model: The frozen model: evaluation mode, float32.
        tokenizer: open_clip's for this model.
        preprocess: How it wants its images.
        uri: What the box is called.
        classes: C class names.
        template: A sentence with one `{}`.
        gives: What it may give back; None: all that a CLIP can, features the richest.
        device: Where to compute, in torch's words.
        identity: What else must agree for an artifact to mean the same: weights hash, model, activation.
        vocabulary: Token ids that the model was trained on, where known; None: all.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[..., Tensor],
        preprocess: Preprocess,
        *,
        uri: str,
        classes: Sequence[str],
        template: str,
        gives: frozenset[str] | None = None,
        device: str = "cpu",
        identity: dict[str, Any],
        vocabulary: frozenset[int] | None = None,
    ) -> None:
        self._device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self._device)
        self.preprocess = preprocess
        self.image_tower = ImageTower(self.model, preprocess)
        self.text_tower = TextTower(self.model, tokenizer, tuple(classes), template, vocabulary=vocabulary)
        self._scale = float(self.model.logit_scale.detach().exp())
        # A bias (SigLIP) is the same for all classes of a row: softmax and argmax do not see it.
        self._template_features: Array | None = None
        self._total = Work(sequences=self.text_tower.sequences, image_encodes=self.image_tower.encodes)
        text = self._text_spec(vocabulary)
        self.spec = BoxSpec(
            uri=uri,
            gives=frozenset(GIVES) if gives is None else gives,
            accepts=frozenset({"words", "pixels"} | ({"context"} if text is not None else set())),
            classes=tuple(classes),
            template=template,
            image_size=preprocess.size,
            text=text,
            identity={**identity, "preprocess": preprocess.as_dict(), "device": self._device.type},
            path=f"text {_path(self.text_tower)}; image {_path(self.image_tower)}",
        )

    def _text_spec(self, vocabulary: frozenset[int] | None) -> TextSpec | None:
        context = self.text_tower.template_context
        if context is None:
            return None
        tower = getattr(self.model, "text", self.model)
        own = hasattr(tower, "token_embedding")
        table = (tower.token_embedding if own else tower.transformer.get_input_embeddings()).weight
        rows = table if vocabulary is None else table[sorted(vocabulary)]
        return TextSpec(context=_numpy(context), sigma=float(self.text_tower.sigma), vocabulary=_numpy(rows))

    @torch.inference_mode()
    def stage(self, source: ImageSource) -> StagedImages:
        """Decode, preprocess and encode all images, once.

        Raises:
            TaskError: There are no images, or one cannot be read; the message names it.
        """
        if len(source) == 0:
            raise TaskError("no images to stage; every split that is used needs at least one")
        features = self._in_parts(source, self.image_tower.encode)
        return StagedImages(source, _numpy(features), lambda images: self._in_parts(images, self.image_tower.project))

    def _in_parts(self, source: ImageSource, run: Callable[[Tensor], Tensor]) -> Tensor:
        """`run` on the pixels of all images, a part at a time."""
        parts = []
        for start in range(0, len(source), _READ):
            images = source.read(range(start, min(start + _READ, len(source))))
            parts.append(run(torch.from_numpy(self.preprocess.pixels(images)).to(self._device)))
        return torch.cat(parts)

    @torch.inference_mode()
    def answer(self, prompts: Prompts, staged: StagedImages, rows: Array) -> Outputs:
        """The richest kind that the box gives, for P candidates on these rows.

        What does not depend on the candidate comes back once: text (1, C, E) or image (1, B, E). NaN passes through.

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
        text, image = self._text(prompts), self._image(prompts, staged, rows)
        if len(text) == len(image) == 1 < prompts.count:
            text = np.broadcast_to(text, (prompts.count, *text.shape[1:]))
        return keep_only(Outputs(text=text, image=image, scale=self._scale), self.spec.gives)

    def _text(self, prompts: Prompts) -> Array:
        """`(P or 1, C, E)`."""
        if prompts.words is not None:
            if prompts.context is not None:
                raise ValueError("a prompt has words or a context before the class name, not both")
            return _numpy(self.text_tower.encode_words(prompts.words))
        if prompts.context is None:
            if self._template_features is None:
                if self.spec.text is None:
                    self._template_features = _numpy(self.text_tower.encode_words([self.spec.template]))
                else:
                    self._template_features = _numpy(self.text_tower.encode(None))
            return self._template_features
        return _numpy(self.text_tower.encode(self._tensor(prompts.context)))

    def _image(self, prompts: Prompts, staged: StagedImages, rows: Array) -> Array:
        """`(P or 1, B, E)`."""
        if prompts.pixels is None:
            return staged.features[rows][None]
        side = self.preprocess.size
        if prompts.pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels of shape {prompts.pixels.shape}: (P, 3, {side}, {side}) is wanted")
        index = torch.as_tensor(np.asarray(rows), device=self._device)
        return _numpy(self.image_tower.encode_framed(staged.projected[index], self._tensor(prompts.pixels)))

    def work(self) -> Work:
        """Sequences and image encodes since the last call."""
        total = Work(sequences=self.text_tower.sequences, image_encodes=self.image_tower.encodes)
        before, self._total = self._total, total
        return Work(
            sequences=total.sequences - before.sequences, image_encodes=total.image_encodes - before.image_encodes
        )

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self._device)


def _path(tower: TextTower | ImageTower) -> str:
    return f"{tower.path} ({tower.why})" if tower.why else tower.path


def _numpy(values: Tensor) -> Array:
    return values.detach().to("cpu", torch.float32).numpy()
