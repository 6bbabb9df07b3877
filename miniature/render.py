"""Procedural 32-pixel images: digits, letters and shapes, coloured, textured, counted, placed, warped, blurred, noisy.

An image is a function of (seed, block): what is drawn (`Scenes`) and every nuisance come from one generator, and the
pixels are computed elementwise, so the number of threads does not matter. Glyphs are drawn with the fonts that
matplotlib ships.

Letters: n images, two groups of like objects an image, up to S = 6 sprites.

Knows nothing of words, of models, or of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from engine.random_streams import Purpose, rng

Array = np.ndarray

SIDE = 32
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "arrow", "diamond", "moon")
ITEMS = (*"0123456789", *"abcdefghijklmnopqrstuvwxyz", *SHAPES)
DIGITS, LETTERS, FIRST_SHAPE = range(0, 10), range(10, 36), 36
DIRECTED = (FIRST_SHAPE + SHAPES.index("triangle"), FIRST_SHAPE + SHAPES.index("arrow"))
PALETTE = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.60, 0.15),
    "blue": (0.12, 0.20, 0.85),
    "yellow": (0.95, 0.88, 0.12),
    "orange": (0.97, 0.52, 0.06),
    "purple": (0.50, 0.12, 0.66),
    "pink": (0.97, 0.55, 0.75),
    "cyan": (0.15, 0.82, 0.88),
    "white": (0.96, 0.96, 0.96),
    "black": (0.05, 0.05, 0.05),
}
COLORS = tuple(PALETTE)
TEXTURES = ("plain", "striped", "checkered", "dotted")
POSITIONS = ("upper left", "top", "upper right", "left", "center", "right", "lower left", "bottom", "lower right")
SIZES = ("small", "large")
DIRECTIONS = ("up", "right", "down", "left")
QUALITIES = ("plain", "blurry", "noisy")
MAX_COUNT = 6
KINDS = (0.62, 0.2, 0.18)
"""Shares of single objects, of several of a kind, and of pairs of unlike objects."""
_BANK = 32
_FONTS = (
    *[
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ],
    *[f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")],
    *[f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")],
    *["cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"],
)
"""The shipped fonts that have plain digits and both cases of the alphabet; the others are symbols."""


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What n images show; -1: absent, or not clear enough to be said. All int64."""

    item: Array
    """`(n, 2)` index into ITEMS; the second group is absent in all images but pairs."""
    color: Array
    """`(n, 2)`"""
    texture: Array
    """`(n, 2)`"""
    count: Array
    """`(n,)` sprites in all: 1, 2 in a pair, 2 to 6 of a kind."""
    position: Array
    """`(n,)` of a single object."""
    size: Array
    """`(n,)`"""
    direction: Array
    """`(n,)` where a single arrow or triangle points."""
    background: Array
    """`(n,)` colour."""
    quality: Array
    """`(n,)` -1: somewhat blurry or noisy, not clearly so."""

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How images are degraded beyond what every image suffers."""

    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What all channels of all images are multiplied by."""
    tint: float = 0.0
    """How far the light of a single image may take away a channel besides, in [0, 1]."""
    contrast: float = 1.0
    noise: float = 0.0
    """Standard deviation added to the noise, of full scale 1."""


def other(random: np.random.Generator, *taken: Array, num: int = 10) -> Array:
    """`(n,)` draws from range(num), uniform over what none of `taken` has in that place."""
    free = np.ones((len(taken[0]), num), bool)
    for values in taken:
        free[np.arange(len(values)), np.maximum(values, 0)] &= values < 0
    return np.where(free, random.random(free.shape), -1.0).argmax(1)


def draw(random: np.random.Generator, n: int, *, kinds: tuple[float, float, float] = KINDS, **fixed: Array) -> Scenes:
    """What to show in n images.

    Args:
        kinds: shares, as in KINDS.
        fixed: `(n,)` values for `item`, `color`, `texture` (of the first group), `count`, `size`, `position`,
            `background` or `quality`; the rest is drawn, and a drawn colour differs from a fixed one it would hide in.
    """
    kind = random.choice(3, n, p=kinds)
    single, several, pair = kind == 0, kind == 1, kind == 2
    # A third each of digits, letters and shapes; sprites of a kind are mostly shapes.
    category = np.where(several & (random.random(n) < 0.6), 2, random.integers(0, 3, n))
    item = fixed.get("item", _item(random, category))
    # A twelfth of single objects resembles a scan of handwriting: one light, blurry digit that fills a dark image.
    scan = single & np.isin(item, DIGITS) & (random.random(n) < 0.25) & (not fixed)
    background = fixed.get("background", np.where(scan, COLORS.index("black"), random.integers(0, 10, n)))
    color = fixed.get("color", np.where(scan, COLORS.index("white"), other(random, background)))
    if "background" not in fixed:
        background = np.where(background == color, other(random, color), background)
    second = np.where(pair, other(random, item, num=len(ITEMS)), -1)
    second_color = np.where(pair, other(random, color, background), -1)
    size = fixed.get("size", np.where(single, np.where(scan, 1, random.random(n) < 0.6), np.where(several, 0, -1)))
    size = size.astype(np.int64)
    # Letters are never textured here: tasks ask for textured letters as something unseen.
    plain = (random.random(n) < 0.45) | ~single | (size == 0) | np.isin(item, LETTERS) | scan
    texture = fixed.get("texture", np.where(plain, 0, random.integers(1, 4, n)))
    count = fixed.get("count", np.where(single, 1, np.where(pair, 2, random.integers(2, MAX_COUNT + 1, n))))
    position = np.where(single, np.where(size == 1, 4, random.integers(0, 9, n)), -1)
    quality = np.where(scan, -1, random.choice(4, n, p=(0.6, 0.12, 0.12, 0.16)))
    return Scenes(
        item=np.stack([item, second], 1),
        color=np.stack([color, second_color], 1),
        texture=np.stack([texture, np.where(pair, 0, -1)], 1),
        count=count,
        position=fixed.get("position", position),
        size=size,
        direction=np.where(single & np.isin(item, DIRECTED), random.integers(0, 4, n), -1),
        background=background,
        quality=fixed.get("quality", np.where(quality == 3, -1, quality)),
    )


def _item(random: np.random.Generator, category: Array) -> Array:
    sizes = np.array([len(DIGITS), len(LETTERS), len(SHAPES)])[category]
    return np.array([0, LETTERS.start, FIRST_SHAPE])[category] + (random.random(len(category)) * sizes).astype(np.int64)


def render(
    seed: int,
    block: int,
    n: int,
    *,
    kinds: tuple[float, float, float] = KINDS,
    look: Look | None = None,
    **fixed: Array,
) -> tuple[Array, Scenes]:
    """Images `(n, 32, 32, 3)` uint8 and what they show: a function of the arguments alone (see `draw`)."""
    random = rng(seed, block, Purpose.RENDER)
    scenes = draw(random, n, kinds=kinds, **fixed)
    return paint(random, scenes, look), scenes


def paint(random: np.random.Generator, scenes: Scenes, look: Look | None = None) -> Array:
    """Images `(n, 32, 32, 3)` uint8 of these scenes, every nuisance drawn from `random`."""
    parts = []
    for start in range(0, len(scenes), 1024):
        rows = slice(start, start + 1024)
        part = replace(scenes, **{name: values[rows] for name, values in vars(scenes).items()})
        parts.append(_paint(random, part, look or Look()))
    return np.concatenate(parts)


def _paint(random: np.random.Generator, scenes: Scenes, look: Look) -> Array:
    import torch

    n = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Array:
        return random.uniform(low, high, (n, *shape)).astype(np.float32)

    def tensor(values: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    def shade(color: Array) -> Array:
        light = palette[np.maximum(color, 0)] * uniform(0.8, 1.1)[:, None]
        return np.clip(light + random.normal(0, 0.05, (n, 3)), 0, 1)

    palette = np.array(list(PALETTE.values()), np.float32)

    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    y, x = tensor(axis)[None, :, None], tensor(axis)[None, None, :]
    # Elastic warp: two slow waves move the points at which all objects are looked up.
    wave = tensor(np.stack([uniform(0, 0.9), uniform(0, 6.3), uniform(0.5, 1.3), uniform(0, 0.9), uniform(0, 6.3)], 1))
    wave, speed = wave[:, :, None, None], 2 * np.pi / SIDE
    warped_x = x + wave[:, 0] * torch.sin(speed * wave[:, 2] * y + wave[:, 1])
    warped_y = y + wave[:, 3] * torch.sin(speed * wave[:, 2] * x + wave[:, 4])

    paper = tensor(shade(scenes.background))
    slope = tensor(uniform(-0.3, 0.3, 2) / SIDE)[:, :, None, None]
    image = paper[:, :, None, None] * (1 + slope[:, :1] * (x - 16) + slope[:, 1:] * (y - 16))[:, :1]
    image = image.expand(n, 3, SIDE, SIDE).clone()

    bank, first, num = _bank()
    inks = [tensor(shade(scenes.color[:, group])) for group in range(2)]
    variants = [first[scenes.item[:, g]] + (uniform(0, 1) * num[scenes.item[:, g]]).astype(np.int64) for g in range(2)]
    layout = _layout(random, scenes)
    phase, angle, fineness = uniform(0, 6.3, 2), uniform(0, np.pi), uniform(1.3, 2.0)
    for sprite in range(MAX_COUNT):
        rows = np.flatnonzero(scenes.count > sprite)
        if not len(rows):
            break
        group = ((sprite == 1) & (scenes.item[rows, 1] >= 0)).astype(np.int64)
        cx, cy, size, turn, shear, stretch = (tensor(values[rows, sprite])[:, None, None] for values in layout)
        dx, dy = warped_x[rows] - cx, warped_y[rows] - cy
        cos, sin = torch.cos(turn), torch.sin(turn)
        v = (cos * dy - sin * dx) * (2 / size) / stretch
        u = (cos * dx + sin * dy) * (2 / size) * stretch + shear * v
        # Small sprites are looked up in a pre-blurred bank, so that thin strokes do not alias away.
        index = torch.from_numpy(np.stack(variants, 1)[rows, group]) + torch.where(
            size[:, 0, 0] < 14, len(bank) // 2, 0
        )
        grid = torch.stack([u, v], -1)
        alpha = torch.nn.functional.grid_sample(bank[index][:, None], grid, align_corners=False)
        ink = torch.stack(inks, 1)[rows, group]
        ink = ink[:, :, None, None]
        weave = _weave(u, v, scenes.texture[rows, group], *(tensor(a[rows]) for a in (phase, angle, fineness)))
        # The second tone of a texture is the ink, darkened where it is light and lightened where it is dark.
        second = torch.where(ink.mean(1, keepdim=True) > 0.45, ink * 0.25, ink * 0.35 + 0.6)
        ink = ink + (second - ink) * weave[:, None]
        image[rows] += (ink - image[rows]) * alpha
    return _degrade(random, image, scenes.quality, look)


def _layout(random: np.random.Generator, scenes: Scenes) -> tuple[Array, ...]:
    """Where sprites lie: centre x and y, size, turn, shear and stretch, each `(n, S)`."""
    n = len(scenes)
    shape = (n, MAX_COUNT)
    jitter = random.uniform(-1.5, 1.5, (2, *shape))
    single, pair = scenes.count == 1, scenes.item[:, 1] >= 0
    cells = np.argsort(random.random((n, 9)), 1)[:, :MAX_COUNT]
    cells[:, 0] = np.where(single & (scenes.position >= 0), scenes.position, cells[:, 0])
    cx, cy = 6.4 + 9.6 * (cells % 3), 6.4 + 9.6 * (cells // 3)
    side = np.where(random.random(n) < 0.5, 1.0, -1.0)
    away = 7.5 * np.stack([-side, side], 1)
    across = random.uniform(-7, 7, (n, 2))
    swap = (random.random(n) < 0.5)[:, None]
    cx[:, :2] = np.where(pair[:, None], 16 + np.where(swap, across, away), cx[:, :2])
    cy[:, :2] = np.where(pair[:, None], 16 + np.where(swap, away, across), cy[:, :2])
    large = single & (scenes.size == 1)
    size = np.where(single[:, None], random.uniform(8.5, 12.5, shape), random.uniform(7.5, 10.5, (n, 1)))
    size = np.where(pair[:, None], random.uniform(12, 16, shape), size)
    size = np.where(large[:, None], random.uniform(18, 29, shape), size)
    jitter *= np.where(large, 1.8, np.where(single, 1.2, 0.7))[:, None]
    turn = random.normal(0, 0.17, shape) + np.maximum(scenes.direction, 0)[:, None] * (np.pi / 2)
    shear = random.normal(0, 0.17, shape)
    stretch = np.exp(random.normal(0, 0.1, shape))
    return cx + jitter[0], cy + jitter[1], size, turn, shear, stretch


def _weave(u, v, texture: Array, phase, angle, fineness):
    """Share of the second tone at each point `(m, H, H)`, in the sprite's own coordinates."""
    import torch

    def wide(values):
        return values[:, None, None]

    f = 2 * np.pi * wide(fineness)
    along = u * torch.cos(wide(angle)) + v * torch.sin(wide(angle))
    stripes = torch.sin(f * along + wide(phase[:, 0]))
    p, q = f * 0.75 * u + wide(phase[:, 0]), f * 0.75 * v + wide(phase[:, 1])
    checks = torch.sin(p) * torch.sin(q)
    dots = torch.cos(1.3 * p) + torch.cos(1.3 * q) - 1.0
    kind = wide(torch.from_numpy(texture))
    pattern = torch.where(kind == 1, stripes, torch.where(kind == 2, 2 * checks, dots))
    return torch.where(kind > 0, (0.5 + 2.0 * pattern).clamp(0, 1) * 0.85, 0.0)


def _degrade(random: np.random.Generator, image, quality: Array, look: Look) -> Array:
    """Light, blur, noise; then bytes."""
    import torch

    n = len(image)

    def pick(*ranges: tuple[float, float]) -> Array:
        low, high = np.array(ranges).T
        return random.uniform(0, 1, n) * (high - low)[quality] + low[quality]

    # Ranges of plain, blurry, noisy and, by index -1, unclear images.
    spread = pick((0.0, 0.14), (0.24, 0.32), (0.0, 0.14), (0.1, 0.28)).astype(np.float32)
    grain = pick((0.0, 0.035), (0.0, 0.03), (0.09, 0.16), (0.0, 0.08)).astype(np.float32)
    weight = torch.from_numpy(spread)[:, None, None, None]
    for _ in range(3):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
        rows = padded[:, :, 1:-1]
        image = rows[..., 1:-1] + weight * (rows[..., :-2] + rows[..., 2:] - 2 * rows[..., 1:-1])
        padded = torch.nn.functional.pad(image, (0, 0, 1, 1), mode="replicate")
        image = image + weight * (padded[:, :, :-2] + padded[:, :, 2:] - 2 * image)
    light = random.uniform(1 - look.tint, 1, (n, 3, 1, 1)) * np.reshape(look.light, (3, 1, 1))
    light = torch.from_numpy(light.astype(np.float32))
    image = (0.5 + look.contrast * (image - 0.5)) * light
    noise = torch.from_numpy(random.standard_normal((n, 3, SIDE, SIDE), dtype=np.float32))
    image = image + noise * (torch.from_numpy(grain)[:, None, None, None] + look.noise)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@lru_cache(maxsize=1)
def _bank():
    """Masks `(2K, 32, 32)` float32, sharp then blurred, and where an item's masks begin and how many it has."""
    import torch

    masks, first, num = [], [], []
    for item in ITEMS:
        drawn = _shape_masks(item) if item in SHAPES else _glyph_masks(item)
        first.append(len(masks))
        num.append(len(drawn))
        masks += drawn
    sharp = torch.from_numpy(np.stack(masks).astype(np.float32) / 255)
    blurred = torch.nn.functional.avg_pool2d(sharp[:, None], 3, 1, 1)[:, 0]
    return torch.cat([sharp, blurred]), np.array(first), np.array(num)


def _glyph_masks(character: str) -> list[Array]:
    """One mask a font, stroke width and case."""
    from pathlib import Path

    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder, masks = Path(matplotlib.get_data_path()) / "fonts" / "ttf", []
    for name in _FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), 64)
        for text in sorted({character, character.upper()}):
            for stroke in (0, 2, 4):
                canvas = Image.new("L", (160, 160))
                ImageDraw.Draw(canvas).text((40, 30), text, fill=255, font=font, stroke_width=stroke)
                masks.append(_fit(canvas))
    return masks


def _shape_masks(name: str) -> list[Array]:
    """One mask: outlines on a unit circle or square, y downwards."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (160, 160))
    pen = ImageDraw.Draw(canvas)

    def at(points):
        return [(80 + 60 * px, 80 + 60 * py) for px, py in points]

    def turn(k, of, r=1.0):
        return (r * np.sin(2 * np.pi * k / of), -r * np.cos(2 * np.pi * k / of))

    t = np.linspace(0, 2 * np.pi, 90)
    heart = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outlines = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
        "star": [turn(k, 10, 1.0 if k % 2 == 0 else 0.42) for k in range(10)],
        "cross": [
            *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
            *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        ],
        "heart": np.stack([np.sin(t) ** 3, heart / -16], 1),
        "arrow": [(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 1), (-0.28, 1), (-0.28, -0.1), (-0.75, -0.1)],
        "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    }
    if name in outlines:
        pen.polygon(at(outlines[name]), fill=255)
    else:
        pen.ellipse(at([(-1, -1), (1, 1)]), fill=255)
    if name == "ring":
        pen.ellipse(at([(-0.58, -0.58), (0.58, 0.58)]), fill=0)
    if name == "moon":
        pen.ellipse(at([(-0.45, -0.95), (1.3, 0.8)]), fill=0)
    return [_fit(canvas)]


def _fit(canvas) -> Array:
    """The drawn part, scaled into the middle 28 of 32 pixels with its proportions kept."""
    from PIL import Image

    part = canvas.crop(canvas.getbbox())
    scale = (_BANK - 4) / max(part.size)
    part = part.resize([max(1, round(side * scale)) for side in part.size], Image.Resampling.BOX)
    mask = Image.new("L", (_BANK, _BANK))
    mask.paste(part, [(_BANK - side) // 2 for side in part.size])
    return np.asarray(mask)
