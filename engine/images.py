"""Bytes and files -> RGB arrays, for tuning and serving alike; and the sources of a task's images.

Images are decoded one at a time and resized at once, so that full-size images are never in memory together. They are
decoded at full size: JPEG's draft mode, which decodes at 1/2 to 1/8, is faster but differs from open_clip's
preprocessing (docs/boxes.md has the numbers).

Letters in shapes: h and w, the sides of an image before preprocessing (preprocessing.py).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from engine.errors import TaskError
from engine.phases import advance, phase
from engine.protocols import Array
from engine.task import ImageSource, Subset

MAX_BYTES = 64 * 2**20
"""Larger encoded images are refused unread."""
MAX_PIXELS = 64 * 10**6
"""Images whose header states more are refused before they are decoded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image: the content of a file or of a request."""

    data: bytes
    name: str
    """For messages."""

    def image(self) -> Image.Image:
        """The image, upright, as 8-bit RGB on white; of an animation, the first frame.

        Raises TaskError where the data are longer than `MAX_BYTES`, larger than `MAX_PIXELS`, corrupt or no image.
        """
        with _readable(io.BytesIO(self.data), len(self.data), self.name) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy would double what a large photo takes
            return _rgb(image, self.name)

    def decode(self) -> Array:
        """The image as `(h, w, 3)` uint8 RGB. Raises TaskError as `image` does."""
        return np.asarray(self.image())


def check(file: BinaryIO, size: int, name: str) -> None:
    """Check an image by its header and its last bytes; decode it only where these are inconclusive.

    Finds files that are empty, no image, too large or truncated. Damage in the middle shows when the image is decoded.

    Args:
        file: Open at its beginning.
        size: Its length in bytes.
        name: For messages.

    Raises TaskError where it cannot be read.
    """
    with _readable(file, size, name) as image:
        kind = image.format or ""
        file.seek(max(0, size - _TAIL))
        if not _ENDS.get(kind, lambda tail: False)(file.read(_TAIL)):
            file.seek(0)
            with Image.open(file) as again:
                again.load()


_TAIL = 64
"""Bytes at the end of a file that `check` reads."""
_ENDS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda tail: b"\xff\xd9" in tail,
    "PNG": lambda tail: b"IEND" in tail,
    "GIF": lambda tail: tail.endswith(b";"),
}
"""Format -> whether these are the last bytes of a complete file."""


@contextmanager
def _readable(file: BinaryIO, size: int, name: str) -> Iterator[Image.Image]:
    """An image within the limits, opened and not decoded yet. Whatever fails in the block becomes a TaskError."""
    if size > MAX_BYTES:
        raise _too_long(name, size)
    with _named(name, empty=not size), Image.open(file) as image:
        _check_pixels(image, name)
        yield image


def _check_pixels(image: Image.Image, name: str) -> None:
    """Raise TaskError where there are too many."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TaskError(
            f"{name}: {width} x {height} pixels, and an image may have {MAX_PIXELS} at most; shrink or remove it"
        )


@contextmanager
def _named(name: str, *, empty: bool = False) -> Iterator[None]:
    """Whatever fails in the block becomes a TaskError that names the image."""
    try:
        yield
    except TaskError:
        raise
    except Image.DecompressionBombError as error:
        raise TaskError(f"{name}: too large to decode ({error}); shrink or remove it") from None
    except Exception as error:  # Pillow's decoders fail with OSError, SyntaxError, struct.error, zlib.error and others
        reason = str(error).replace(repr(error), "") or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is empty" if empty else "no known image format"
        raise TaskError(f"{name}: not a readable image ({reason}); repair or remove it") from error


def _too_long(name: str, size: int) -> TaskError:
    return TaskError(f"{name}: {size} bytes, and an image may have {MAX_BYTES} at most; shrink or remove it")


def _read(path: str | Path) -> Encoded:
    """A file's content. Raises TaskError where it is missing, unreadable or too large."""
    with _file(path) as (file, size):
        if size > MAX_BYTES:
            raise _too_long(str(path), size)
        return Encoded(file.read(), str(path))


@contextmanager
def _file(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """An open file and its length in bytes. Raises TaskError where it is missing or unreadable."""
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise TaskError(f"{path}: no such image file; restore it or remove it from the task") from None
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB from any mode with a defined white level."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise TaskError(f"{name}: 32-bit pixels, whose white level is not defined; save it with 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def digest(image: Array | Encoded) -> str:
    """An image's identity: SHA-256 (hex) of its encoded bytes, or of an array's shape, type and content.

    >>> digest(np.zeros((2, 3, 3), np.uint8)) == digest(np.zeros((3, 2, 3), np.uint8))
    False
    """
    if isinstance(image, Encoded):
        return "encoded:" + hashlib.sha256(image.data).hexdigest()
    head = f"{image.dtype.str}{image.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


class EncodedSource:
    """An `ImageSource` of encoded images, which can be compared and checked without decoding."""

    __slots__ = ()

    def fetch(self, row: int) -> Encoded:
        """One image, not decoded. Raises TaskError naming it where it cannot be fetched."""
        raise NotImplementedError

    def check(self, row: int) -> None:
        """Raises TaskError naming the image of this row where its header or its end shows that it cannot be read."""
        found = self.fetch(row)
        check(io.BytesIO(found.data), len(found.data), found.name)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(h, w, 3)` of these rows. Raises TaskError naming one that cannot be read."""
        return [self.fetch(row).decode() for row in rows]


@dataclass(frozen=True, slots=True)
class Files(EncodedSource):
    """Images in files."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, row: int) -> Encoded:
        """A file's content. Raises TaskError naming a file that is missing, unreadable or too large."""
        return _read(self.paths[row])

    def check(self, row: int) -> None:
        """As `EncodedSource.check`, reading no more than the header and the end of the file."""
        with _file(self.paths[row]) as (file, size):
            check(file, size, self.paths[row])


ImageLike = str | Path | bytes | Image.Image | Array
"""An image as a caller may give it: a path, encoded bytes, a PIL image or uint8 RGB `(h, w, 3)`."""


def as_many(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """An argument that is one image or many, as many; an array `(n, h, w, 3)` is many."""
    single = isinstance(images, str | Path | bytes | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim != 4
    )
    return images if isinstance(images, Iterable) and not single else (images,)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Given:
    """An `ImageSource` of images as a caller gives them, of any kinds."""

    images: tuple[ImageLike, ...]
    first: int = 0
    """The number of the first in messages."""

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, row: int) -> Array | Encoded:
        """One image, decoded only where it came decoded. Raises TaskError naming it where it is no image."""
        image, name = self.images[row], f"image {self.first + row}"
        if isinstance(image, str | Path):
            return _read(image)
        if isinstance(image, bytes):
            return Encoded(image, name)
        if isinstance(image, Image.Image):
            with _named(name):
                _check_pixels(image, name)
                return np.asarray(_rgb(ImageOps.exif_transpose(image), name))
        kind = f"a {type(image).__name__}"
        if isinstance(image, np.ndarray):
            if (image.dtype, image.shape[2:]) == (np.uint8, (3,)) and 0 < image.size <= 3 * MAX_PIXELS:
                return image
            kind = f"{image.dtype} {image.shape}"
        raise TaskError(
            f"{name} is {kind}; give a path, encoded bytes, a PIL image or uint8 RGB (h, w, 3) of {MAX_PIXELS} pixels "
            "at most"
        )

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(h, w, 3)` of these rows. Raises TaskError naming one that cannot be read."""
        found = (self.fetch(row) for row in rows)
        return [image.decode() if isinstance(image, Encoded) else image for image in found]

    def wrong(self, row: int) -> TaskError | None:
        """Why the image of this row cannot be read; None where it can."""
        try:
            self.read([row])
        except TaskError as error:
            return error
        return None


def one_by_one(source: ImageSource, rows: Sequence[int]) -> Iterator[Array | Encoded]:
    """The images of these rows, one at a time, encoded where possible. Raises TaskError naming one that fails."""
    source, rows = _origin(source, rows)
    for row in rows:
        if isinstance(source, EncodedSource | Given):
            yield source.fetch(row)
        else:
            yield from source.read([row])


def check_images(*sources: ImageSource) -> None:
    """Check all encoded images. Raises TaskError naming the first that cannot be read."""
    origins = [_origin(source, range(len(source))) for source in sources]
    encoded = [(source, row) for source, rows in origins if isinstance(source, EncodedSource) for row in rows]
    if not encoded:
        return
    with phase("checking images", len(encoded)):
        for number, (source, row) in enumerate(encoded):
            source.check(row)
            if number % 100 == 0:
                advance(number)


def _origin(source: ImageSource, rows: Sequence[int]) -> tuple[ImageSource, Sequence[int]]:
    """The source under a subset (of a subset ...), and these rows there."""
    while isinstance(source, Subset):
        rows = [source.rows[row] for row in rows]
        source = source.source
    return source, rows
