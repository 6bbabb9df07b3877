"""One frozen box, its images encoded in batches: whatever artifacts they are for, they share a batch.

Images are decoded and preprocessed in a pool of threads, once each; one thread of its own computes, with its
arithmetic held to a number of threads. The event loop does neither.

Letters in shapes: n rows of a batch, C classes, E joint embedding width, H image side in pixels.
Knows nothing of names, versions, HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypeVar

import numpy as np
from PIL.Image import Image

from engine.boxes import open_box
from engine.errors import ArtifactError, BoxError, KeyholeError, TaskError
from engine.folded import probabilities_of
from engine.images import MAX_BYTES, Encoded
from engine.protocols import Array, Towers
from engine.threads import limited
from serve.answering import Refusal, Timing
from serve.batching import Batcher
from serve.folding import Served

Value = TypeVar("Value")

FORMATS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
"""How the formats begin that are taken; besides them WebP, whose mark stands behind a length."""
_DECODED = 2**16
"""Encoded bytes that are worth another thread: some milliseconds of decoding."""
KNOWN = ", ".join(dict.fromkeys([*FORMATS.values(), "WEBP"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """How an encoder computes."""

    device: str = "cpu"
    """In torch's words."""
    batch: int = 32
    """Images of a batch, at most."""
    decoders: int = 2
    """Threads that decode images."""
    threads: int = 1
    """Threads of the encoder's own arithmetic."""
    queue: int = 512
    """Images that may wait or be worked on; more are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The answer of one artifact for one image."""

    label: int
    probabilities: Array
    """`(C,)` float64; NaN where the box gives labels alone."""
    scores: Array | None
    """`(C,)` float32."""
    features: Array | None
    """`(E,)` float32."""


Outcome = Scored | Refusal


@dataclass(frozen=True, slots=True)
class _Item:
    """One decoded image, and who is to answer for it."""

    pixels: Array
    """`(3, H, H)`."""
    folded: Sequence[Served]


class Encoder:
    """A frozen box that answers for folded artifacts.

    Args:
        uri: The box.
        classes, template: Of any one artifact: a box is not opened without.

    Raises:
        KeyholeError: As `open_box`.
    """

    def __init__(self, uri: str, classes: Sequence[str], template: str, settings: EncoderSettings) -> None:
        # Pillow warns of damage in words of the client's choice. Python would keep each of them for good.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self.settings = settings
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._decode = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._batcher: Batcher[_Item, list[Outcome]] = Batcher(
            self._answer, most=settings.batch, executor=self._compute
        )
        self._busy = 0
        self.box = self._compute.submit(
            open_box, uri, classes=classes, template=template, device=settings.device, threads=settings.threads
        ).result()
        # For the life of the thread, and after what it computes with has been loaded: not anew for each batch.
        self._limit = ExitStack()
        self.compute(self._limit.enter_context, limited(settings.threads))
        self._towers = self.box if isinstance(self.box, Towers) else None
        self.width = 0
        """E; 0 where the towers of the box cannot be asked apart."""
        if self._towers is not None:
            pixels = np.zeros((1, 3, *(self.box.spec.image_size,) * 2), np.float32)
            self.width = self.compute(self._towers.encode, pixels).shape[1]

    def compute(self, work: Callable[..., Value], *args: object) -> Value:
        """Call in the thread that computes, between batches; for other threads, never for the event loop."""
        return self._compute.submit(work, *args).result()

    def close(self) -> None:
        """End the threads. No image is decoded any more; what is being encoded is finished."""
        self._decode.shutdown(wait=False, cancel_futures=True)
        self._compute.submit(self._limit.close)
        self._compute.shutdown(wait=False)

    async def answer(self, images: Sequence[bytes], folded: Sequence[Served]) -> list[tuple[list[Outcome], Timing]]:
        """For every encoded image the outcomes in the order of `folded`. An image is decoded once."""
        room = max(0, self.settings.queue - self._busy)
        taken, left = images[:room], images[room:]
        self._busy += len(taken)
        try:
            starts = range(0, len(taken), self.settings.batch)
            groups = [self._group(taken[start : start + self.settings.batch], folded) for start in starts]
            parts = await asyncio.gather(*groups)
        finally:
            self._busy -= len(taken)
        full = "as many images wait as may; try again, send fewer at once, or start more replicas"
        refused = Refusal(code="overloaded", message=full, retry_after_s=1)
        return [found for part in parts for found in part] + [([refused] * len(folded), Timing())] * len(left)

    async def probe(self) -> None:
        """Encode an image. Raises BoxError where that gives no finite features."""
        if self._towers is not None:
            features = await asyncio.get_running_loop().run_in_executor(self._compute, self._probed)
            if not np.isfinite(features).all():
                raise BoxError("the model's features are not finite numbers")

    def _probed(self) -> Array:
        assert self._towers is not None
        black = np.zeros((self._towers.spec.image_size,) * 2 + (3,), np.uint8)
        return self._towers.encode(self._towers.pixels([black]))

    # -----------------------------------------------------------------------------------------------------------------

    async def _group(self, images: Sequence[bytes], folded: Sequence[Served]) -> list[tuple[list[Outcome], Timing]]:
        """A batch of one request. The artifacts of a box are all answered as a whole, or none is."""
        start = time.perf_counter()
        if folded[0].whole is not None:
            loop = asyncio.get_running_loop()
            return [
                ([await loop.run_in_executor(self._compute, _whole, one, image) for one in folded], Timing())
                for image in images
            ]
        pixels = await self._decoded(images)
        decode_s = (time.perf_counter() - start) / len(images)
        items = [_Item(found, folded) for found in pixels if not isinstance(found, Refusal)]
        done: list[tuple[list[Outcome], Timing]] = []
        for part in await self._batcher.submit(items):
            timing = Timing(decode_s=decode_s, queue_s=part.queue_s, encode_s=part.work_s, batch=part.batch)
            done += [(outcomes, timing) for outcomes in part.results]
        if len(done) == len(images):
            return done
        answered, undone = iter(done), Timing()
        return [([found] * len(folded), undone) if isinstance(found, Refusal) else next(answered) for found in pixels]

    async def _decoded(self, images: Sequence[bytes]) -> list[Array | Refusal]:
        """As `_pixels`, by several threads where that is worth it. All together, so that they share a batch."""
        threads = min(self.settings.decoders, len(images), 1 + sum(map(len, images)) // _DECODED)
        size = -(-len(images) // threads)
        shares = [images[start : start + size] for start in range(0, len(images), size)]
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(self._decode, self._pixels, share) for share in shares))
        return [pixels for share in found for pixels in share]

    def _pixels(self, images: Sequence[bytes]) -> list[Array | Refusal]:
        """`(3, H, H)` of each image, or why not."""
        assert self._towers is not None
        refusals: list[Refusal | None] = []

        def readable() -> Iterator[Image]:
            for image in images:
                refusal, decoded = unwanted(image), None
                if refusal is None:
                    try:
                        decoded = Encoded(image, "the image").image()
                    except TaskError as error:
                        refusal = Refusal(code="bad_image", message=str(error))
                refusals.append(refusal)
                if decoded is not None:
                    yield decoded

        pixels = iter(self._towers.pixels(readable()))  # one after the other: one image at a time is in memory
        return [next(pixels) if refusal is None else refusal for refusal in refusals]

    def _answer(self, items: list[_Item]) -> list[list[Outcome]]:
        """A batch: each image once for every frame, then the rows of each artifact together."""
        assert self._towers is not None
        runs = [list(run) for _, run in groupby(items, lambda item: id(item.folded))]  # images of one request
        pixels: list[Array] = []
        frames: list[Array | None] = []
        wanted: dict[int, tuple[Served, list[tuple[int, range]]]] = {}  # artifact -> runs and their rows of the batch
        for number, run in enumerate(runs):
            rows: dict[int, range] = {}  # of each frame
            for one in {id(one): one for one in run[0].folded}.values():
                if id(one.frame) not in rows:
                    rows[id(one.frame)] = range(len(pixels), len(pixels) + len(run))
                    pixels += [item.pixels for item in run]
                    frames += [one.frame] * len(run)
                wanted.setdefault(id(one), (one, []))[1].append((number, rows[id(one.frame)]))
        found: dict[tuple[int, int], list[Outcome]] = {}
        features = self._encode(pixels, frames)
        for which, (one, places) in wanted.items():
            outcomes = iter(scored(one, features[[row for _, where in places for row in where]]))
            for number, where in places:
                found[number, which] = list(islice(outcomes, len(where)))
        columns = ([found[number, id(one)] for one in run[0].folded] for number, run in enumerate(runs))
        return [list(row) for column in columns for row in zip(*column, strict=True)]

    def _encode(self, pixels: list[Array], frames: list[Array | None]) -> Array:
        """`(n, E)`. Batches of `batch` rows, also where artifacts with frames ask for an image several times."""
        assert self._towers is not None
        parts = []
        for start in range(0, len(pixels), self.settings.batch):
            some = slice(start, start + self.settings.batch)
            stack, own = np.stack(pixels[some]), None
            if any(frame is not None for frame in frames[some]):
                own = np.stack([np.zeros_like(stack[0]) if frame is None else frame for frame in frames[some]])
            parts.append(self._towers.encode(stack, own))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def scored(served: Served, features: Array) -> list[Outcome]:
    """Outcomes of one artifact for `(n, E)` image features."""
    assert served.folded is not None
    try:
        outputs = served.folded.outputs(features)
    except ArtifactError as error:
        return [Refusal(code="unavailable", message=str(error))] * len(features)
    scores, probabilities = outputs.logits()[0], probabilities_of(outputs, len(served.classes))
    return [
        Scored(label=label, probabilities=table, scores=row, features=feature)
        for label, row, table, feature in zip(
            scores.argmax(axis=1).tolist(), scores, probabilities, features, strict=True
        )
    ]


def unwanted(image: bytes) -> Refusal | None:
    """Why these bytes are not even looked into; None: they may be an image."""
    if len(image) > MAX_BYTES:
        return Refusal(code="too_large", message=f"an image of {len(image)} bytes; {MAX_BYTES} are allowed: shrink it")
    if not image:
        return Refusal(code="bad_image", message="the image is empty; send an encoded image")
    if image.startswith(tuple(FORMATS)) or (image[:4] == b"RIFF" and image[8:12] == b"WEBP"):
        return None
    return Refusal(code="unsupported_type", message=f"the bytes are no image of a known format; send one of {KNOWN}")


def _whole(folded: Served, image: bytes) -> Outcome:
    """The answer of a classifier by itself."""
    assert folded.whole is not None
    if refusal := unwanted(image):
        return refusal
    try:
        (answer,) = folded.whole.each([image])
    except KeyholeError as error:
        return Refusal(code="unavailable", message=str(error))
    if isinstance(answer, TaskError):
        return Refusal(code="bad_image", message=str(answer).replace("image 0", "the image"))
    label = folded.classes.index(answer.label)
    return Scored(label=label, probabilities=answer.probabilities, scores=None, features=None)
