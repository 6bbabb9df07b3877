"""Images -> pixels in [0, 1] as a model expects them: the one preprocessing for tuning and serving.

Letters in shapes: n images, H image side in pixels, h and w the sides of an image before preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from engine.errors import RecipeError, TaskError
from engine.images import Encoded
from engine.protocols import Array

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_RESIZES = ("shortest", "squash", "longest")
LONGEST = 64
"""Lengths of its short side that are looked at of a long image, before the centre crop takes one of them."""


def _shortened(image: Image.Image) -> Image.Image:
    """The middle of an image that is very long: enlarged whole, a hundred bytes of PNG would take gigabytes."""
    width, height = image.size
    wide, high = min(width, LONGEST * height), min(height, LONGEST * width)
    if (wide, high) == (width, height):
        return image
    left, top = (width - wide) // 2, (height - high) // 2
    return image.crop((left, top, left + wide, top + high))


def _upright(image: Array | Encoded | Image.Image) -> Image.Image:
    """A Pillow image of RGB."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Encoded):
        return image.image()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TaskError(f"an image of {image.dtype} {image.shape}: uint8 (h, w, 3) is wanted; decode it first")
    return Image.fromarray(np.ascontiguousarray(image))


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How a model expects its images: part of a box's identity.

    Agrees to the bit, before normalisation, with open_clip's `image_transform(..., is_train=False)` of an RGB image.
    Raises RecipeError for values out of range.
    """

    size: int
    """H: side of the model's square input, in pixels."""
    mean: tuple[float, float, float]
    """Per channel, in [0, 1]; the image tower subtracts it, after a pixel frame has been added."""
    std: tuple[float, float, float]
    """Per channel; the image tower divides by it."""
    interpolation: str = "bicubic"
    """bicubic or bilinear, antialiased."""
    resize: str = "shortest"
    """shortest: shortest side to H, centre cropped; longest: longest side to H, padded; squash: both sides to H."""
    fill: int = 0
    """Grey level of the padding, 0 to 255."""

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise RecipeError(f"interpolation {self.interpolation!r}: it is one of {', '.join(_FILTERS)}")
        if self.resize not in _RESIZES:
            raise RecipeError(f"resize {self.resize!r}: it is one of {', '.join(_RESIZES)}")
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise RecipeError(f"{self}: it needs a size of 1 or more, three means and three positive deviations")

    def pixels(self, images: Iterable[Array | Encoded | Image.Image]) -> Array:
        """Decode where needed, resize and crop, one image after the other; without normalisation.

        Args:
            images: n encoded images, what `Encoded.image` makes of them, or arrays `(h, w, 3)` uint8 RGB, of any size.

        Returns:
            `(n, 3, H, H)` float32 in [0, 1].

        Raises TaskError where an image cannot be decoded, or an array has another type or shape.
        """
        rows = [np.asarray(self._fit(_upright(image)), np.float32).transpose(2, 0, 1) for image in images]
        return np.stack(rows) / np.float32(255) if rows else np.empty((0, 3, self.size, self.size), np.float32)

    def _fit(self, image: Image.Image) -> Image.Image:
        """Resize and centre crop to H x H, with torchvision's and open_clip's rounding."""
        if self.resize == "shortest":
            image = _shortened(image)
        side, (width, height) = self.size, image.size
        if self.resize == "squash":
            width, height = side, side
        elif self.resize == "longest":
            ratio = max(height / side, width / side)
            width, height = round(width / ratio), round(height / ratio)
        elif width <= height:  # the other side is cut down, not rounded
            width, height = side, int(side * height / width)
        else:
            width, height = int(side * width / height), side
        if image.size != (width, height):
            image = image.resize((max(width, 1), max(height, 1)), _FILTERS[self.interpolation])
        if image.size == (side, side):
            return image
        if min(image.size) < side:
            square = Image.new("RGB", (max(image.width, side), max(image.height, side)), (self.fill,) * 3)
            square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
            image = square
        left, top = int(round((image.width - side) / 2.0)), int(round((image.height - side) / 2.0))
        return image.crop((left, top, left + side, top + side))

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
