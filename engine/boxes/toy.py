"""A box of a few NumPy matrices, for documentation and tests: it opens in milliseconds, and tuning it helps.

Its text tower is a fixed random two-layer network of the context and a code of the class name; its image tower resizes
an image to 8 x 8 pixels and projects them. `toy_task` draws images around the class features at a context some distance
from the template's: this is the optimum that a search has to find.

Letters in shapes: as in engine.protocols; M = 4, W = 8, E = 16, H = 8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.boxes import BoxRequest, keep_only
from engine.errors import RecipeError, RefusedError
from engine.images import Encoded, one_by_one
from engine.preprocessing import Preprocess
from engine.protocols import GIVES, Array, BoxSpec, Outputs, Prompts, TextSpec, Work
from engine.random_streams import Purpose, rng
from engine.task import ImageSource, Split, Task

TOKENS, WIDTH, JOINT, SIDE, HIDDEN = 4, 8, 16, 8, 64
SIGMA = 0.5
SCALE = 10.0
DISTANCE = 1.5
"""Distance of the optimum from the template, in units of theta (root mean square)."""
CLASSES = ("circle", "square", "triangle", "star", "cross")
TEMPLATE = "a drawing of a {}."

_PREPROCESS = Preprocess(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


class _Network:
    """The fixed random numbers of the toy: the same in every process."""

    @cached_property
    def into(self) -> Array:
        """`(M * W + W, HIDDEN)`."""
        return rng(0, 0, Purpose.WEIGHTS).normal(size=(TOKENS * WIDTH + WIDTH, HIDDEN)) / np.sqrt(WIDTH)

    @cached_property
    def out(self) -> Array:
        """`(HIDDEN, E)`."""
        return rng(0, 1, Purpose.WEIGHTS).normal(size=(HIDDEN, JOINT)) / np.sqrt(HIDDEN)

    @cached_property
    def pixels(self) -> Array:
        """`(3 * H * H, E)` with orthonormal columns: the image tower; its transpose paints `ToyImages`."""
        return np.linalg.qr(rng(0, 2, Purpose.WEIGHTS).normal(size=(3 * SIDE * SIDE, JOINT)))[0]

    @cached_property
    def template(self) -> Array:
        """`(M, W)` float32."""
        return rng(0, 3, Purpose.WEIGHTS).normal(size=(TOKENS, WIDTH)).astype(np.float32) * np.float32(SIGMA)

    @cached_property
    def optimum(self) -> Array:
        """`(M, W)`: the toy task's images are drawn around the class features of this context."""
        return self.template + DISTANCE * SIGMA * rng(0, 4, Purpose.WEIGHTS).normal(size=(TOKENS, WIDTH))

    @cached_property
    def centres(self) -> Array:
        """`(C, E)`: the class features at the optimum."""
        return self.text(self.optimum[None], CLASSES)[0]

    def text(self, contexts: Array, classes: Sequence[str]) -> Array:
        """`(P, M, W)`, or `(P, C, M, W)`, -> `(P, C, E)` float32, L2-normalised."""
        codes = np.stack([_code(name) for name in classes])
        if contexts.ndim == 3:
            return np.stack([self._text_of(context, codes) for context in contexts])
        own = codes[:, None]
        return np.stack([np.concatenate([self._text_of(c, own[i]) for i, c in enumerate(one)]) for one in contexts])

    def _text_of(self, context: Array, codes: Array) -> Array:
        """`(M, W)` before these names."""
        # For other lengths than the template's, the weights repeat with their ends aligned and are scaled to match.
        count = len(context)
        into = self.into[: TOKENS * WIDTH].reshape(TOKENS, WIDTH, -1)[np.arange(-count, 0) % TOKENS]
        # einsum and not BLAS: the bits must not depend on P or on threads.
        hidden = np.tanh(
            np.einsum("i,ih->h", context.reshape(-1).astype(np.float64), into.reshape(count * WIDTH, -1))
            * (TOKENS / count)
            + np.einsum("ci,ih->ch", codes, self.into[TOKENS * WIDTH :])
        )
        return _normalised(np.einsum("ch,he->ce", hidden, self.out))

    def image(self, pixels: Array) -> Array:
        """`(n, 3, H, H)` in [0, 1] -> `(n, E)` float32, L2-normalised."""
        return _normalised(np.einsum("ni,ie->ne", pixels.reshape(len(pixels), -1) - 0.5, self.pixels))


_NETWORK = _Network()


class ToyBox:
    """A `BlackBox` of NumPy alone. It accepts text contexts.

    >>> box, task = ToyBox(), toy_task(seed=1)
    >>> staged = box.stage(task.val.source)
    >>> box.answer(Prompts(count=1), staged, np.arange(2)).logits().shape
    (1, 2, 5)
    """

    def __init__(
        self,
        *,
        uri: str = "toy:",
        classes: Sequence[str] = CLASSES,
        template: str = TEMPLATE,
        gives: frozenset[str] | None = None,
    ) -> None:
        self.spec = BoxSpec(
            uri=uri,
            gives=frozenset(GIVES) if gives is None else gives,
            accepts=frozenset({"context"}),
            classes=tuple(classes),
            template=template,
            image_size=SIDE,
            text=TextSpec(context=_NETWORK.template, sigma=SIGMA),
            identity={"weights": "toy-1", "model": "toy", "preprocess": _PREPROCESS.as_dict()},
        )
        self._work = Work()

    def stage(self, source: ImageSource) -> Array:
        """`(N, E)` float32 features of all images."""
        pixels = _PREPROCESS.pixels(one_by_one(source, range(len(source))))
        self._work += Work(image_encodes=len(pixels))
        return _NETWORK.image(pixels)

    def answer(self, prompts: Prompts, staged: Array, rows: Array) -> Outputs:
        """The richest kind that the box gives, for P candidates on these rows.

        Raises:
            RefusedError: The prompt is not a text context.
            ValueError: The context is neither `(P, M, W)` nor `(P, C, M, W)` of the toy's W.
        """
        if prompts.needs() - self.spec.accepts:
            raise RefusedError(f"the toy box accepts context, not {', '.join(sorted(prompts.needs()))}")
        contexts = _NETWORK.template[None].repeat(len(prompts), 0) if prompts.context is None else prompts.context
        own = len(self.spec.classes)
        if contexts.ndim not in (3, 4) or contexts.shape[-1] != WIDTH or contexts.shape[1:-2] not in ((), (own,)):
            raise ValueError(f"context of shape {contexts.shape}: (P, M, {WIDTH}) or (P, {own}, M, {WIDTH}) is wanted")
        self._work += Work(sequences=len(contexts) * len(self.spec.classes))
        text = _NETWORK.text(contexts, self.spec.classes)
        return keep_only(Outputs(text=text, image=staged[rows][None], scale=SCALE), self.spec.gives)

    def knows(self, template: str) -> bool:
        """Any template: a word is a hash to it."""
        return True

    scale = SCALE

    def pixels(self, images: Iterable[Array | Encoded]) -> Array:
        """As `protocols.Towers`."""
        return _PREPROCESS.pixels(images)

    def encode(self, pixels: Array, frames: Array | None = None) -> Array:
        """As `protocols.Towers`. Raises RefusedError for frames, which the toy does not accept."""
        if frames is not None:
            raise RefusedError("the toy box accepts context, not pixels")
        return _NETWORK.image(pixels)

    def retold(self, classes: Sequence[str], template: str) -> ToyBox:
        """As `protocols.Towers`."""
        return ToyBox(uri=self.spec.uri, classes=classes, template=template, gives=self.spec.gives)

    def work(self) -> Work:
        """Sequences and image encodes since the last call."""
        done, self._work = self._work, Work()
        return done


@dataclass(frozen=True, slots=True)
class ToyImages:
    """An `ImageSource` of synthetic images, drawn from (seed, row) whenever they are read."""

    labels: tuple[int, ...]
    """The class of each image, an index into `CLASSES`."""
    seed: int
    noise: float = 0.12
    """Standard deviation of an image's feature around its class's, in each of E directions."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(8, 8, 3)` of these rows."""
        return [self._paint(_NETWORK.centres[self.labels[row]], row) for row in rows]

    def _paint(self, centre: Array, row: int) -> Array:
        feature = centre + self.noise * rng(self.seed, row, Purpose.RENDER).normal(size=JOINT)
        values = np.einsum("ie,e->i", _NETWORK.pixels, feature).reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        return np.clip(np.round(127.5 + 255 * values), 0, 255).astype(np.uint8)


def toy_task(*, seed: int = 1, train: int = 16, val: int = 4, test: int = 100) -> Task:
    """Five classes of synthetic images on which the template does badly and a tuned context well.

    `seed` draws the images; `train`, `val` and `test` are images per class.
    """
    splits = []
    for number, shots in enumerate((train, val, test)):
        labels = np.tile(np.arange(len(CLASSES)), shots)
        splits.append(Split(source=ToyImages(tuple(labels.tolist()), 3 * seed + number), labels=labels))
    return Task(uri="toy:", classes=CLASSES, template=TEMPLATE, train=splits[0], val=splits[1], test=splits[2])


def open_box(request: BoxRequest) -> ToyBox:
    """Open `toy:`, which computes on the CPU whatever the device. Raises RecipeError for a name or an option."""
    if request.rest:
        raise RecipeError(f"box {request.uri!r}: there is one toy box, named toy:")
    request.allow()
    return ToyBox(uri=request.uri, classes=request.classes, template=request.template, gives=request.gives)


def _code(name: str) -> Array:
    """`(W,)`: a class name's vector, from a hash of its letters."""
    return np.random.default_rng(list(hashlib.sha256(name.encode()).digest())).normal(size=WIDTH)


def _normalised(features: Array) -> Array:
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)
