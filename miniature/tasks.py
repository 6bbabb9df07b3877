"""Tasks that need no download: real handwriting from scikit-learn, and rendered ones that give a prompt real work.

A task here is a pool (`train`; `val` is empty) from which a few-shot sampler draws, and one fixed test split. Images
depend on fixed seeds only. Some class names are ambiguous on purpose: "three" may be a digit or a count, "red" an
object or its background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from engine.errors import TaskError, nearest
from engine.random_streams import Purpose, rng
from engine.task import ImageSource, Split, Subset, Task
from miniature.captions import NUMBERS
from miniature.render import COLORS, FIRST_SHAPE, LETTERS, MAX_COUNT, POSITIONS, SHAPES, TEXTURES, Look

Array = np.ndarray

TASKS = {
    "digits": "real handwritten digits (scikit-learn), white on black",
    "biased": "the same digits on coloured backgrounds that mislead a learner",
    "bgcol": "the colour of the background, behind an object of another colour",
    "countw": "how many shapes there are, named by a number word alone",
    "color": "the colour of a letter or digit under warm light, in noise",
    "pos": "where a large letter lies in the image, partly outside",
    "texture": "the texture of a large shape; a control: tuning helps little",
    "count": "how many shapes there are, named in full; a control as well",
}
"""Name -> what its classes are; the URI is `mini:NAME`."""

POOL, POOL_DIGITS, TEST = 256, 40, 10_000
"""Pool images per class of rendered and of handwritten tasks; test images of a rendered task."""
_SEED = 2_000_000
"""Rendering seeds from here on are for tasks; pretraining uses smaller ones."""
_BLOCK = 500
_PAPERS = np.array(
    [
        *[(190, 30, 30), (30, 130, 40), (35, 55, 200), (170, 150, 20), (205, 105, 15)],
        *[(115, 35, 150), (205, 90, 140), (30, 150, 165), (120, 120, 120), (20, 20, 20)],
    ]
)
"""Backgrounds of `biased`, dark enough for white ink."""


@dataclass(frozen=True)
class _Design:
    """A rendered task: its class names, and what labels determine in a scene."""

    classes: tuple[str, ...]
    fixed: Callable[[np.random.Generator, Array], dict[str, Any]]
    template: str = "a photo of a {}."
    control: bool = False


def _letters(random: np.random.Generator, labels: Array) -> Array:
    return random.integers(LETTERS.start, LETTERS.stop, len(labels))


def _shapes(random: np.random.Generator, labels: Array) -> Array:
    return FIRST_SHAPE + random.integers(0, len(SHAPES), len(labels))


_FULL = FIRST_SHAPE + np.array([SHAPES.index(name) for name in ("circle", "square", "triangle", "heart", "diamond")])
"""Shapes with room for a texture."""
_SINGLE, _SEVERAL = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
_DESIGNS = {
    "bgcol": _Design(COLORS, lambda random, labels: {"kinds": _SINGLE, "background": labels}),
    "countw": _Design(
        NUMBERS[1 : MAX_COUNT + 1],
        lambda random, labels: {"kinds": _SEVERAL, "count": labels + 1, "item": _shapes(random, labels)},
    ),
    "color": _Design(
        COLORS,
        lambda random, labels: {
            "kinds": _SINGLE,
            "color": labels,
            "size": np.ones_like(labels),
            "item": random.integers(0, LETTERS.stop, len(labels)),
            "look": Look(light=(1.0, 0.7, 0.4), tint=0.1, contrast=0.7, noise=0.05),
        },
    ),
    "pos": _Design(
        POSITIONS,
        lambda random, labels: {
            "kinds": _SINGLE,
            "position": labels,
            "size": np.ones_like(labels),
            "item": _letters(random, labels),
            "texture": random.integers(1, len(TEXTURES), len(labels)),
        },
    ),
    "texture": _Design(
        TEXTURES,
        lambda random, labels: {
            "kinds": _SINGLE,
            "texture": labels,
            "size": np.ones_like(labels),
            "item": _FULL[random.integers(0, len(_FULL), len(labels))],
        },
        control=True,
    ),
    "count": _Design(
        ("one shape", *(f"{number} shapes" for number in NUMBERS[2 : MAX_COUNT + 1])),
        lambda random, labels: {"kinds": _SEVERAL, "count": labels + 1, "item": _shapes(random, labels)},
        template="a photo of {}.",
        control=True,
    ),
}


def load(name: str) -> Task:
    """The pool task `mini:NAME`. Raises TaskError where the name is unknown.

    >>> task = load("digits")
    >>> task.classes[7], len(task.train), len(task.val), len(task.test)
    ('digit seven', 400, 0, 1397)
    """
    if name not in TASKS:
        raise TaskError(f"unknown task 'mini:{name}'{nearest(name, TASKS)}; embedded: {', '.join(TASKS)}")
    if name in _DESIGNS:
        design = _DESIGNS[name]
        pool, test = (Rendered(name, part, len(_labels(name, part))) for part in ("pool", "test"))
        train = Split(source=pool, labels=_labels(name, "pool"))
        held_out = Split(source=test, labels=_labels(name, "test"))
        return _task(name, design.classes, train, held_out, template=design.template, control=design.control)
    _, labels = _handwriting()
    everything = Split(source=Digits() if name == "digits" else BiasedDigits(), labels=labels)
    classes = tuple(f"digit {number}" for number in NUMBERS)
    pool = _pool_rows()
    rest = np.setdiff1d(np.arange(len(labels)), pool)
    return _task(name, classes, everything.subset(pool), everything.subset(rest))


def _task(name: str, classes: tuple[str, ...], train: Split, test: Split, **options: Any) -> Task:
    none = Split(source=Subset(train.source, ()), labels=np.zeros(0, np.int64))
    options = {"template": "a photo of a {}."} | options
    return Task(uri=f"mini:{name}", classes=classes, train=train, val=none, test=test, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Rendered images


@dataclass(frozen=True, slots=True)
class Rendered(ImageSource):
    """An `ImageSource` of a part of a rendered task, drawn block by block when read."""

    task: str
    part: str
    """"pool" or "test"."""
    num: int

    def __len__(self) -> int:
        return self.num

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(32, 32, 3)` of these rows. Raises IndexError where there is no such row."""
        if outside := [int(row) for row in rows if not 0 <= row < self.num]:
            raise IndexError(
                f"rows {outside[:3]} are outside of the {self.num} images of mini:{self.task} ({self.part})"
            )
        places = [divmod(int(row), _BLOCK) for row in rows]
        return [_block(self.task, self.part, block)[place] for block, place in places]


def _seed(task: str, part: str) -> int:
    return _SEED + 10 * list(TASKS).index(task) + ("pool", "test").index(part)


@lru_cache(maxsize=16)
def _labels(task: str, part: str) -> Array:
    """`(n,)` int64, as balanced as n allows, in random order."""
    num_classes = len(_DESIGNS[task].classes)
    num = POOL * num_classes if part == "pool" else TEST
    labels = rng(_seed(task, part), 0, Purpose.SPLIT).permutation(np.arange(num) % num_classes)
    labels.setflags(write=False)
    return labels


@lru_cache(maxsize=64)
def _block(task: str, part: str, block: int) -> Array:
    """`(n, 32, 32, 3)` uint8, read-only, as all callers in this process share it."""
    from miniature.render import render

    labels = _labels(task, part)[block * _BLOCK : (block + 1) * _BLOCK]
    seed = _seed(task, part)
    # A design's own draws must not depend on the renderer's: another purpose gives another stream.
    fixed = _DESIGNS[task].fixed(rng(seed, 1 + block, Purpose.SPLIT), labels)
    images, _ = render(seed, block, len(labels), **fixed)
    images.setflags(write=False)
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Handwriting


@dataclass(frozen=True, slots=True)
class Digits(ImageSource):
    """An `ImageSource` of scikit-learn's digits: 8 x 8 scans enlarged to 26 pixels within 32."""

    def __len__(self) -> int:
        return len(_handwriting()[1])

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(32, 32, 3)` of these rows."""
        ink = _handwriting()[0]
        return [np.repeat(ink[row][:, :, None], 3, 2) for row in rows]


@dataclass(frozen=True, slots=True)
class BiasedDigits(ImageSource):
    """The same digits in white on colours that follow the label with probability 0.8; inverted in the test split.

    After Biased-MNIST (Bahng et al. 2020, arXiv 1910.02806): a classifier that learns the colour fails the test.
    """

    def __len__(self) -> int:
        return len(_handwriting()[1])

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(32, 32, 3)` of these rows."""
        ink, papers = _handwriting()[0], _papers()
        share = [ink[row][:, :, None] / 255 for row in rows]
        return [
            (255 * part + _PAPERS[papers[row]] * (1 - part)).round().astype(np.uint8)
            for part, row in zip(share, rows, strict=True)
        ]


@lru_cache(maxsize=1)
def _handwriting() -> tuple[Array, Array]:
    """Ink `(1797, 32, 32)` uint8 and labels `(1797,)` int64."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    small = (data.images * (255 / 16)).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((26, 26), Image.Resampling.BICUBIC)) for image in small]
    return np.pad(np.stack(large), ((0, 0), (3, 3), (3, 3))), data.target.astype(np.int64)


@lru_cache(maxsize=1)
def _pool_rows() -> Array:
    """Ascending rows of the pool: 40 a class, the same for `digits` and `biased`."""
    labels = _handwriting()[1]
    order = rng(_SEED, 0, Purpose.SPLIT).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == label][:POOL_DIGITS] for label in range(10)]))


@lru_cache(maxsize=1)
def _papers() -> Array:
    """`(1797,)` index into _PAPERS."""
    labels = _handwriting()[1]
    random = rng(_SEED, 1, Purpose.SPLIT)
    misleading = np.where(np.isin(np.arange(len(labels)), _pool_rows()), labels, 9 - labels)
    return np.where(random.random(len(labels)) < 0.8, misleading, random.integers(0, 10, len(labels)))
