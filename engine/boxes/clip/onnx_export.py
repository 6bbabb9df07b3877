"""The image tower of an open_clip model as ONNX, with the frame before it and the classifier behind it.

The model's own forward is exported, not the box's faster paths, whose packed layers ONNX does not have.

Letters: n images, C classes, E joint width, H image side in pixels.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from engine.boxes.clip.box import ClipBox
from engine.classifier import Classifier
from engine.errors import RecipeError, RefusedError, extra
from engine.export import Exported, about
from engine.folded import Folded
from engine.heads.linear import LinearHead
from engine.heads.torch_modules import torch_module
from engine.images import Given, ImageLike, one_by_one
from engine.protocols import Array

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 2 * 10**9
"""Of weights: an ONNX file is one protobuf message, which ends at 2 GiB."""
INPUT = "RGB in [0, 1], float32 (n, 3, H, H), resized and cropped as `preprocess` says, mean and std not applied"
"""What the metadata says of `pixels`."""


class TunedTower(nn.Module):
    """Pixels -> logits and features: all that a classifier computes after preprocessing.

    Args:
        box: Whose model it is.
        folded: What follows the tower, and the frame.
    """

    frame: Tensor | None
    text: Tensor | None
    mean: Tensor
    std: Tensor

    def __init__(self, box: ClipBox, folded: Folded) -> None:
        super().__init__()
        on_cpu = next(box.model.parameters()).device.type == "cpu"
        self.model = box.model if on_cpu else copy.deepcopy(box.model).cpu()
        self.clip = box.image_tower.clip
        self.scale = folded.scale
        assert folded.text is not None, "a classifier folds with its text"
        plain = LinearHead.of(folded.scale * folded.text, np.zeros(len(folded.text)), chosen=0.0)
        self.head = torch_module(folded.head or plain)
        self.register_buffer("frame", None if folded.frame is None else torch.tensor(folded.frame))
        self.register_buffer("text", torch.tensor(folded.text) if folded.reads_scores else None)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(box.preprocess, name)).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, 3, H, H)` in [0, 1] -> logits `(n, C)`, L2-normalised features `(n, E)`."""
        if self.frame is not None:
            pixels = pixels + self.frame
            pixels = pixels.clamp(0, 1) if self.clip else pixels
        features = self.model.encode_image((pixels - self.mean) / self.std, normalize=True)
        if self.text is None:
            return self.head(features), features
        return self.head(log_softmax(self.scale * features @ self.text.T, dim=-1)), features


def as_onnx(classifier: Classifier) -> Exported:
    """An ONNX model: `pixels` `(n, 3, H, H)` -> `logits` `(n, C)` and `features` `(n, E)`, n of any size.

    Pixels are in [0, 1], resized and cropped; a frame, mean and std are in the model. Its metadata are `export.about`,
    a JSON value each, and `input`, which says how the pixels are wanted.

    Raises:
        RecipeError: A package of the extra `export` is not installed.
        RefusedError: The box holds no open_clip model or gives no features, the model is too large for one file, or
            its layers or the head cannot be expressed.
        ArtifactError: The artifact does not fit its box.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise RecipeError(f"exporting to ONNX needs the package {missing[0]!r}; {extra('export')}")
    box, folded = classifier.box, classifier.fold()
    if not isinstance(box, ClipBox):
        raise RefusedError(
            f"{box.spec.uri} is no open_clip model as it is, and only such can be exported to ONNX: name one with "
            "--box, or export the rows alone --to classifier"
        )
    size = sum(4 * value.numel() for value in box.model.visual.parameters())
    if size > MOST_BYTES:
        raise RefusedError(
            f"the image tower of {box.spec.uri} has {size / 1e9:.1f} GB, and an ONNX file holds {MOST_BYTES / 1e9:.0f} "
            "GB at most; export the rows alone --to classifier"
        )
    program = _program(TunedTower(box, folded).eval(), box.spec.image_size, box.spec.uri)
    facts = {**about(classifier), "input": INPUT}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
    data = proto.SerializeToString()

    def scores(images: Sequence[ImageLike]) -> Array:
        source = Given(tuple(images))
        return _answers(data, box.preprocess.pixels(one_by_one(source, range(len(source)))))

    return Exported(data=data, scores=scores)


def _program(tower: nn.Module, side: int, uri: str) -> Any:
    """torch's ONNXProgram. Raises RefusedError where a layer cannot be expressed."""
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                tower,
                (torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)),),
                dynamo=True,
                input_names=["pixels"],
                output_names=["logits", "features"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
                verbose=False,
            )
    except Exception as error:  # torch, onnxscript and the model's own code each have theirs
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RefusedError(
            f"the image tower of {uri} cannot be expressed in ONNX ({reason}); export the rows alone --to classifier"
        ) from error


def _answers(data: bytes, pixels: Array) -> Array:
    """`(n, C)` logits by ONNX Runtime: of the first image alone and of the others together, for n must be free."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"pixels": part})[0] for part in (pixels[:1], pixels[1:])]
    return np.concatenate(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """While open: the exporter does not log or warn about what it leaves as it is."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
