"""Captions that state a random part of what an image shows, and the test whether a caption is true of an image.

A caption is first a row of claims, then words; the words never state more than the claims.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from miniature.render import (
    COLORS,
    DIGITS,
    DIRECTIONS,
    FIRST_SHAPE,
    ITEMS,
    LETTERS,
    MAX_COUNT,
    POSITIONS,
    QUALITIES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scenes,
)

Array = np.ndarray

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CATEGORIES = ("digit", "letter", "shape", "object")
SEVERAL = MAX_COUNT + 1
"""The claimed count of a plural without a number."""
TEMPLATES = (
    "a {q}photo of {}.",
    "a {q}photo of {}.",
    "a {q}photo of {}.",
    "a {q}picture of {}.",
    "an {q}image of {}.",
    "a {q}drawing of {}.",
    "this is {}.",
    "there is {}.",
    "we see {}.",
    "{}.",
    "{}",
)
"""`{q}` is the place of the quality. "a photo of", the tasks' own template, occurs more than once on purpose."""
_WITH_QUALITY = 6
_PLACES = (
    "in the upper left",
    "at the top",
    "in the upper right",
    "on the left",
    "in the center",
    "on the right",
    "in the lower left",
    "at the bottom",
    "in the lower right",
)


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What n captions state, int64; -1: nothing about that."""

    item: Array
    """`(n, 2)`"""
    category: Array
    """`(n, 2)` index into CATEGORIES; "object" fits everything."""
    color: Array
    """`(n, 2)`"""
    texture: Array
    """`(n, 2)`"""
    second: Array
    """`(n,)` bool: whether the second group of a pair is mentioned."""
    count: Array
    """`(n,)` sprites of the first group, SEVERAL for a bare plural; "a" claims 1."""
    position: Array
    """`(n,)`"""
    size: Array
    """`(n,)`"""
    direction: Array
    """`(n,)`"""
    background: Array
    """`(n,)`"""
    quality: Array
    """`(n,)`"""


def category_of(items: Array) -> Array:
    """Index into CATEGORIES of each item, -1 for none."""
    return np.where(items < 0, -1, np.where(items < LETTERS.start, 0, np.where(items < FIRST_SHAPE, 1, 2)))


def claim(random: np.random.Generator, scenes: Scenes) -> Claims:
    """True claims about n scenes: a random part of what they show."""
    n = len(scenes)

    def keep(values: Array, share: Array | float) -> Array:
        return np.where(random.random(values.shape) < share, values, -1)

    pair = scenes.item[:, 1] >= 0
    second = pair & (random.random(n) < 0.7)
    # Either group of a pair may come first.
    swap = pair & (random.random(n) < 0.5)

    def turned(values: Array) -> Array:
        return np.where(swap[:, None], values[:, ::-1], values)

    item = keep(turned(scenes.item), 0.85)
    kind = category_of(turned(scenes.item))
    texture = turned(scenes.texture)
    spoken = np.where(texture > 0, keep(texture, 0.65), keep(texture, 0.05))
    claims = Claims(
        item=item,
        category=np.where(item >= 0, -1, np.where(random.random((n, 2)) < 0.6, kind, 3)),
        color=keep(turned(scenes.color), 0.5),
        texture=spoken,
        second=second,
        count=np.where(pair | (scenes.count == 1), 1, np.where(random.random(n) < 0.85, scenes.count, SEVERAL)),
        position=keep(scenes.position, np.where(scenes.position == 4, 0.15, 0.5)),
        size=np.where(scenes.count == 1, keep(scenes.size, 0.25), -1),
        direction=keep(scenes.direction, 0.5),
        background=keep(scenes.background, 0.4),
        quality=np.where(scenes.quality > 0, keep(scenes.quality, 0.6), -1),
    )
    for name in ("item", "category", "color", "texture"):
        getattr(claims, name)[~second, 1] = -1
    return claims


def true_of(claims: Claims, scenes: Scenes) -> Array:
    """`(captions, images)` bool: which captions are true of which images, by the attributes.

    Any claim about an unclear quality counts as true, so that such an image is never a negative.
    """

    def agree(said: Array, shown: Array) -> Array:
        return (said[:, None] == -1) | (said[:, None] == shown[None])

    def fits(said: int, shown: int) -> Array:
        item, kind = scenes.item[:, shown], category_of(scenes.item[:, shown])
        alike = agree(claims.item[:, said], item)
        alike &= agree(np.where(claims.category[:, said] == 3, -1, claims.category[:, said]), kind)
        alike &= agree(claims.color[:, said], scenes.color[:, shown])
        alike &= agree(claims.texture[:, said], scenes.texture[:, shown])
        return alike & (item >= 0)[None]

    pair = (scenes.item[:, 1] >= 0)[None]
    first, first_of_second = fits(0, 0), fits(0, 1)
    second = claims.second[:, None]
    pairs = second & ((first & fits(1, 1)) | (first_of_second & fits(1, 0)))
    one = claims.count[:, None] == 1
    number = np.where(one, (scenes.count == 1)[None] | pair, claims.count[:, None] == scenes.count[None])
    number |= (claims.count[:, None] == SEVERAL) & (scenes.count > 1)[None]
    alone = ~second & np.where(one, first | first_of_second, first & (~pair | first_of_second))
    truth = (pairs | alone) & number
    for name in ("position", "size", "direction", "background", "quality"):
        shown = getattr(scenes, name)
        unclear = (shown == -1)[None] if name == "quality" else False
        truth &= agree(getattr(claims, name), shown) | unclear
    return truth


def say(random: np.random.Generator, claims: Claims) -> list[str]:
    """The claims in words, each in a random one of `TEMPLATES`."""
    dice = random.random((len(claims.count), 8))
    templates = random.integers(0, len(TEMPLATES), len(claims.count))
    templates = np.where(claims.quality > 0, templates % _WITH_QUALITY, templates)
    return [_sentence(claims, row, TEMPLATES[templates[row]], dice[row]) for row in range(len(templates))]


def _sentence(claims: Claims, row: int, template: str, dice: Array) -> str:
    count = claims.count[row]
    words = _noun(claims, row, 0, count, dice)
    if claims.direction[row] >= 0:
        words += f" pointing {DIRECTIONS[claims.direction[row]]}"
    if claims.second[row]:
        words += " and " + _noun(claims, row, 1, 1, dice[4:])
    if (place := claims.position[row]) >= 0:
        words += f" {_PLACES[place]}" if dice[2] < 0.7 else f", {POSITIONS[place]}"
    if (paper := claims.background[row]) >= 0:
        words += (
            f" on {_article(COLORS[paper])} {COLORS[paper]} background" if dice[3] < 0.7 else f" on {COLORS[paper]}"
        )
    quality = f"{QUALITIES[claims.quality[row]]} " if claims.quality[row] > 0 else ""
    sentence = template.replace("{q}", quality).replace("{}", words)
    return f"a{sentence[2:]}" if sentence.startswith("an ") and quality else sentence


def _noun(claims: Claims, row: int, group: int, count: int, dice: Array) -> str:
    """A noun phrase with its article or number: "three red stars", "the digit 7", "a small green letter k"."""
    item, many = claims.item[row, group], bool(count > 1)
    words = [SIZES[claims.size[row]]] if group == 0 and claims.size[row] >= 0 else []
    if (texture := claims.texture[row, group]) >= 0:
        words.append(TEXTURES[texture])
    if (color := claims.color[row, group]) >= 0:
        words.append(COLORS[color])
    if item < 0:
        name = CATEGORIES[claims.category[row, group]]
        if name == "object" and color >= 0 and not many and dice[0] < 0.25:
            return " ".join(words)
        words.append(name + "s" * many)
    elif item >= FIRST_SHAPE:
        name = SHAPES[item - FIRST_SHAPE]
        words.append(name + ("es" if name == "cross" else "s") * many)
    else:
        if item not in DIGITS:
            name = f"letter {ITEMS[item]}" if dice[0] < 0.85 else ITEMS[item]
        elif dice[0] < 0.6:
            name = f"digit {NUMBERS[item]}"
        elif dice[0] < 0.8:
            name = f"digit {item}"
        else:
            name = f"number {NUMBERS[item] if dice[0] < 0.92 else item}"
        words.append(f"copies of the {name}" if many else name)
    if many:
        return " ".join(words if count == SEVERAL else [NUMBERS[count], *words])
    return " ".join(["the" if dice[1] < 0.2 else _article(words[0]), *words])


def _article(word: str) -> str:
    return "an" if word in ("orange", "arrow", "object") else "a"


def words() -> list[str]:
    """All words that captions may use, which are those that the shipped models know."""
    bare = " ".join(TEMPLATES + _PLACES).replace("{q}", "").replace("{}", "")
    known = [*bare.split(), *ITEMS, *NUMBERS, *CATEGORIES, *SHAPES, *COLORS, *TEXTURES, *SIZES, *DIRECTIONS]
    known += [f"{name}s" for name in (*CATEGORIES, *SHAPES)] + ["crosses", *QUALITIES]
    known += ["an", "the", "and", "on", "background", "pointing", "copies", "of", "number"]
    return sorted({word.strip(".,") for word in known} - {""}) + [".", ","]
