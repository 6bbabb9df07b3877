"""Bytes and files -> RGB arrays -> pixels in [0, 1]: the one preprocessing that tuning and serving share.

Letters in shapes: n images, H image side in pixels, h and w the sides of an image as it came.
Knows nothing of models, tasks or of what the pixels are used for.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from engine.core import Array
from engine.errors import RecipeError, TaskError

MAX_BYTES = 64 * 2**20
"""An encoded image above this is refused unread."""
MAX_PIXELS = 64 * 10**6
"""An image whose header promises more is refused before it is decoded."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_RESIZES = ("shortest", "squash", "longest")


def read_image(path: str | Path) -> Array:
    """The image in a file, upright.

    Args:
        path: A file in any format that Pillow reads; of an animation, the first frame.

    Returns:
        `(h, w, 3)` uint8 RGB.

    Raises:
        TaskError: The file is missing, unreadable, too large, corrupt or no image; the message names it.
    """
    return decode(_bytes(path), str(path))


def _bytes(path: str | Path) -> bytes:
    """A file's content. Raises TaskError where it is missing, unreadable or too large."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise TaskError(f"{path}: {size} bytes, and an image may have {MAX_BYTES} at most; shrink or remove it")
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise TaskError(f"{path}: no such image file; restore it or remove it from the task") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def decode(data: bytes, name: str) -> Array:
    """The image in encoded bytes, upright. What is transparent shows white.

    Args:
        data: An encoded image, at most `MAX_BYTES` long and `MAX_PIXELS` large.
        name: What a message calls it.

    Returns:
        `(h, w, 3)` uint8 RGB.

    Raises:
        TaskError: The bytes are too many, too large an image, corrupt, truncated or no image.
    """
    if len(data) > MAX_BYTES:
        raise TaskError(f"{name}: {len(data)} bytes, and an image may have {MAX_BYTES} at most; shrink or remove it")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise TaskError(
                    f"{name}: {width} x {height} pixels, and an image may have {MAX_PIXELS} at most; "
                    "shrink or remove it"
                )
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image), name))
    except TaskError:
        raise
    except Image.DecompressionBombError as error:
        raise TaskError(f"{name}: too large to decode ({error}); shrink or remove it") from None
    except Exception as error:  # Pillow's decoders fail with OSError, SyntaxError, struct.error, zlib.error and others
        reason = str(error).replace(repr(error), "") or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "no known image format" if data else "it is empty"
        raise TaskError(f"{name}: not a readable image ({reason}); repair or remove it") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB from any mode that has a fixed white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise TaskError(f"{name}: 32-bit pixels, of which nothing says what is white; save it with 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def digest(image: Array) -> str:
    """SHA-256 (hex) of an array's shape, type and content: a cache's key for one image.

    >>> digest(np.zeros((2, 3, 3), np.uint8)) == digest(np.zeros((3, 2, 3), np.uint8))
    False
    """
    head = f"{image.dtype.str}{image.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Files:
    """Images that lie in files: an `ImageSource`."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(h, w, 3)` of these rows. Raises TaskError naming a file that cannot be read."""
        return [read_image(self.paths[row]) for row in rows]

    def digests(self, rows: Sequence[int]) -> list[str]:
        """SHA-256 (hex) of these files' bytes: what tells images apart without decoding them. Raises TaskError."""
        return [hashlib.sha256(_bytes(self.paths[row])).hexdigest() for row in rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How a model wants its images: part of a box's identity.

    Agrees to the bit, before normalisation, with open_clip's `image_transform(..., is_train=False)` of an RGB image.
    """

    size: int
    """H: side of the square that the model sees, in pixels."""
    mean: tuple[float, float, float]
    """Of each channel in [0, 1]; subtracted by whoever encodes, after a frame was added."""
    std: tuple[float, float, float]
    """Of each channel; divided by."""
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

    def pixels(self, images: Sequence[Array]) -> Array:
        """Resize and crop. Not normalised.

        Args:
            images: n arrays `(h, w, 3)` uint8 RGB of any size.

        Returns:
            `(n, 3, H, H)` float32 in [0, 1].
        """
        out = np.empty((len(images), 3, self.size, self.size), np.float32)
        for row, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TaskError(f"an image of {image.dtype} {image.shape}: uint8 (h, w, 3) is wanted; decode it first")
            fitted = self._fit(Image.fromarray(np.ascontiguousarray(image)))
            out[row] = np.asarray(fitted, np.float32).transpose(2, 0, 1) / np.float32(255)
        return out

    def _fit(self, image: Image.Image) -> Image.Image:
        """Resize and centre crop to H x H, with torchvision's and open_clip's rounding."""
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
        """Plain JSON values; `from_dict` takes them back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """The inverse of `as_dict`. Raises RecipeError for a key that is missing or unknown."""
        try:
            mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
            return cls(**(values | {"mean": mean, "std": std}))
        except (KeyError, TypeError) as error:
            raise RecipeError(f"preprocessing {values}: {error}; its keys are {list(cls.__slots__)}") from None
