"""Templates in words, for boxes that accept nothing else: each slot of a sentence comes from one of many templates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import RecipeError
from engine.prompts import require
from engine.prompts.template_list import TEMPLATES
from engine.protocols import Array, BoxSpec, Prompts
from engine.search_space import Space


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """Slots of words before the class name, aligned at it, and one slot for all words after it.

    An entry of theta, rounded, is the index of a slot's choice: 0 is the template's own word (or none), the others are
    the words of other templates in that place, each once. theta = 0 is the task's own template, character by character.

    >>> words = words_of("a photo of {}.", ("an image of the {}", "the {}."))
    >>> words.decode(words.pool).words
    ('a photo of {}.', 'an image of the {}', 'the {}.')
    >>> words.decode(np.array([[0, 0, 0, 1, 1]], np.float32)).words
    ('a photo the {}',)
    """

    template: str
    choices: tuple[tuple[str, ...], ...]
    """The choices of each slot, the template's first; "" is no word. The last slot holds the words after the name."""
    pool: Array
    """`(T, d)` float32: the thetas of complete templates, the task's own first."""

    @property
    def space(self) -> Space:
        """d is the number of slots; all that moves is text."""
        return Space(dim=len(self.choices), moves=frozenset({"text"}), known=self.pool)

    def decode(self, thetas: Array) -> Prompts:
        """`(P, d)` -> P templates. Raises ValueError where `thetas` is not `(P, d)`."""
        if thetas.ndim != 2 or thetas.shape[1] != len(self.choices):
            raise ValueError(f"thetas of shape {thetas.shape}: (P, {len(self.choices)}) is wanted")
        return Prompts(count=len(thetas), words=tuple(self._sentence(theta) for theta in thetas))

    def _sentence(self, theta: Array) -> str:
        numbers = [int(n) % len(words) for n, words in zip(np.rint(theta), self.choices, strict=True)]
        if not any(numbers):
            return self.template
        *before, behind = (words[n] for n, words in zip(numbers, self.choices, strict=True))
        return " ".join([word for word in before if word] + ["{}"]) + behind


def words_of(template: str, others: tuple[str, ...]) -> Words:
    """The slots of a template and of others, and all of them as candidates."""
    sentences = [_parts(one) for one in dict.fromkeys((template, *others))]
    longest = max(len(before) for before, _ in sentences)
    table = [[*[""] * (longest - len(before)), *before, behind] for before, behind in sentences]
    choices = tuple(tuple(dict.fromkeys(column)) for column in zip(*table, strict=True))
    pool = [[words.index(word) for words, word in zip(choices, row, strict=True)] for row in table]
    return Words(template, choices, np.array(pool, np.float32))


def words(spec: BoxSpec, *, templates: str | None = None, subspace: str = "full", seed: int = 1) -> Words:
    """The shipped templates beside the task's own.

    Args:
        spec: The box's description.
        templates: Templates to use instead of the shipped ones, separated by `|`.
        subspace: `full`, the only one.
        seed: Not used.

    Raises:
        RefusedError: The box does not accept words.
        RecipeError: A subspace is given, or a template has not exactly one `{}`.
    """
    require(spec, "words")
    if subspace != "full":
        raise RecipeError(f"subspace {subspace!r}: words have no subspaces; leave it out")
    others = TEMPLATES if templates is None else tuple(templates.split("|"))
    for one in others:
        if one.count("{}") != 1:
            raise RecipeError(f"template {one!r}: it needs exactly one {{}} for the class name")
    return words_of(spec.template, others)


def _parts(template: str) -> tuple[list[str], str]:
    before, _, behind = template.partition("{}")
    return before.split(), behind
