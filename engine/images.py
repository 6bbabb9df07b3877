"""Bytes and files -> RGB arrays, for tuning and serving alike; and the sources of a task's images.

Images are decoded one at a time and shrunk at once, so that full-size ones never lie in memory together. They are
decoded at full size: JPEG's draft mode, which decodes at 1/2 to 1/8, is faster but not open_clip's preprocessing
(docs/boxes.md has the numbers).

Letters in shapes: h and w the sides of an image as it came. How a model wants them is in preprocessing.py.
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
from engine.protocols import Array, ImageSource, Subset

MAX_BYTES = 64 * 2**20
"""An encoded image above this is refused unread."""
MAX_PIXELS = 64 * 10**6
"""An image whose header promises more is refused before it is decoded."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image: the content of a file, or what a client sent."""

    data: bytes
    name: str
    """What a message calls it."""

    def image(self) -> Image.Image:
        """The image, upright, as 8-bit RGB; what is transparent shows white, of an animation the first frame.

        Raises TaskError where the bytes are too many, too large an image, corrupt, truncated or no image.
        """
        with _readable(io.BytesIO(self.data), len(self.data), self.name) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy would double what a large photo takes
            return _rgb(image, self.name)

    def decode(self) -> Array:
        """The image as `(h, w, 3)` uint8 RGB. Raises TaskError as `image` does."""
        return np.asarray(self.image())


def check(file: BinaryIO, size: int, name: str) -> None:
    """Whether an image can be read, from its header and its end: decoded only where these leave a doubt.

    Finds what is empty, no image, too large or cut short; damage in the middle shows when the image is decoded.

    Args:
        file: Open at its beginning.
        size: Its length in bytes.
        name: What a message calls it.

    Raises:
        TaskError: It cannot be read.
    """
    with _readable(file, size, name) as image:
        kind = image.format or ""
        file.seek(max(0, size - _TAIL))
        if not _ENDS.get(kind, _unknown)(file.read(_TAIL)):
            file.seek(0)
            with Image.open(file) as again:
                again.load()


_TAIL = 64
"""Last bytes of a file that are looked at."""
_ENDS: dict[str, Callable[[bytes], bool]] = {
    "JPEG": lambda tail: b"\xff\xd9" in tail,
    "PNG": lambda tail: b"IEND" in tail,
    "GIF": lambda tail: tail.endswith(b";"),
}
"""Format -> whether these are the last bytes of a whole file."""


def _unknown(tail: bytes) -> bool:
    return False


@contextmanager
def _readable(file: BinaryIO, size: int, name: str) -> Iterator[Image.Image]:
    """An image opened and not decoded yet, within the limits. All that fails in the block is a TaskError."""
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
    """All that fails in the block is a TaskError that names the image."""
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


def digest(image: Array | Encoded) -> str:
    """What tells one image from all others: SHA-256 (hex) of its encoded bytes, or of an array's shape, type, content.

    >>> digest(np.zeros((2, 3, 3), np.uint8)) == digest(np.zeros((3, 2, 3), np.uint8))
    False
    """
    if isinstance(image, Encoded):
        return "encoded:" + hashlib.sha256(image.data).hexdigest()
    head = f"{image.dtype.str}{image.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image).tobytes()).hexdigest()


class EncodedSource:
    """An `ImageSource` whose images lie encoded: they are told apart and looked over without being decoded."""

    __slots__ = ()

    def fetch(self, row: int) -> Encoded:
        """One image as it lies there. Raises TaskError naming it where that fails."""
        raise NotImplementedError

    def check(self, row: int) -> None:
        """Raise TaskError naming the image of this row if its header or its end says that it cannot be read."""
        found = self.fetch(row)
        check(io.BytesIO(found.data), len(found.data), found.name)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(h, w, 3)` of these rows. Raises TaskError naming one that cannot be read."""
        return [self.fetch(row).decode() for row in rows]


@dataclass(frozen=True, slots=True)
class Files(EncodedSource):
    """Images that lie in files."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, row: int) -> Encoded:
        """A file's content. Raises TaskError naming a file that is missing, unreadable or too large."""
        return _read(self.paths[row])

    def check(self, row: int) -> None:
        """As `EncodedSource.check`; reads no more than a header and an end."""
        with _file(self.paths[row]) as (file, size):
            check(file, size, self.paths[row])


ImageLike = str | Path | bytes | Image.Image | Array
"""An image as a caller has it: a path, encoded bytes, a PIL image or uint8 RGB `(h, w, 3)`."""


def as_many(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """The images of an argument that is one or many; an array of more axes than an image's is many."""
    single = isinstance(images, str | Path | bytes | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim != 4
    )
    return images if isinstance(images, Iterable) and not single else (images,)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Given:
    """An `ImageSource` of images as a caller has them, mixed."""

    images: tuple[ImageLike, ...]
    first: int = 0
    """Number of the first, for messages."""

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, row: int) -> Array | Encoded:
        """One image, decoded or as it lies. Raises TaskError naming it where it is none."""
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
        """Why the image of this row cannot be read; None: it can."""
        try:
            self.read([row])
        except TaskError as error:
            return error
        return None


def one_by_one(source: ImageSource, rows: Sequence[int]) -> Iterator[Array | Encoded]:
    """The images of these rows, one at a time, encoded where they lie so. Raises TaskError naming one that fails."""
    source, rows = _origin(source, rows)
    for row in rows:
        if isinstance(source, EncodedSource | Given):
            yield source.fetch(row)
        else:
            yield from source.read([row])


def check_images(*sources: ImageSource) -> None:
    """Look over all images that lie encoded. Raises TaskError naming the first that cannot be read."""
    origins = [_origin(source, range(len(source))) for source in sources]
    lying = [(source, row) for source, rows in origins if isinstance(source, EncodedSource) for row in rows]
    if not lying:
        return
    with phase("checking images", len(lying)):
        for number, (source, row) in enumerate(lying):
            source.check(row)
            if number % 100 == 0:
                advance(number)


def _origin(source: ImageSource, rows: Sequence[int]) -> tuple[ImageSource, Sequence[int]]:
    """The source that these rows of a subset (of a subset ...) come from, and their rows there."""
    while isinstance(source, Subset):
        rows = [source.rows[row] for row in rows]
        source = source.source
    return source, rows
