"""A template and class names as token ids, split where the context ends.

A prompt is `[start] context name [end]`: the template's words before `{}` are the context; those after it belong to the
name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from string import punctuation
from typing import Any

from engine.errors import RefusedError, TaskError, UnknownWordsError, few

Tokenizer = Callable[..., Any]
"""An open_clip tokenizer: `tokenizer(texts, context_length=n)` -> `(len(texts), n)` int64 ids, padded behind."""

_ROOM = 4
"""Prompts are tokenised into this many times the model's positions, so that long ones are found and not truncated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTokens:
    """C prompts of one template, in token ids."""

    start: tuple[int, ...]
    """Ids before every text: a start token, or none (SigLIP)."""
    context: tuple[int, ...]
    """M ids: the template's words before `{}`."""
    suffixes: tuple[tuple[int, ...], ...]
    """For each class its name and the words after it, then `end`."""
    end: tuple[int, ...]
    """Ids after every text; () where this is the pad itself (SigLIP's T5 vocabulary)."""
    pad: int
    length: int
    """Positions of the model."""
    classes: tuple[str, ...]

    def rows(self, num_context: int | None = None) -> list[list[int]]:
        """C rows of `length` ids, for a context of `num_context` vectors (None: the template's words).

        Vectors have no ids: each of their positions holds the first id of the name, which no model mistakes for an end
        token or a pad. Raises TaskError naming a class whose prompt does not fit.
        """
        rows = []
        for name, suffix in zip(self.classes, self.suffixes, strict=True):
            context = self.context if num_context is None else (suffix[0],) * num_context
            row = [*self.start, *context, *suffix]
            needed = len(row) + (0 if self.end else 1)
            if needed > self.length:
                raise TaskError(
                    f"class {name!r} needs {needed} tokens with a context of {len(context)}; this model has "
                    f"{self.length} positions; shorten the name, the template or the context"
                )
            rows.append(row + [self.pad] * (self.length - len(row)))
        return rows

    def only(self, indices: Sequence[int]) -> PromptTokens:
        """Some of the classes, in this order."""
        return replace(
            self,
            suffixes=tuple(self.suffixes[index] for index in indices),
            classes=tuple(self.classes[index] for index in indices),
        )


def split_template(template: str) -> tuple[str, str]:
    """The words before and after the one `{}` of a template. Raises TaskError where there is none, or more than one.

    >>> split_template("a photo of a {}.")
    ('a photo of a ', '.')
    """
    if template.count("{}") != 1:
        raise TaskError(
            f"{template=} has {template.count('{}')} places for the class name; it needs exactly one: write "
            "{} once, as in 'a photo of a {}.'"
        )
    before, behind = template.split("{}")
    return before, behind


def tokenize_prompts(
    tokenizer: Tokenizer, classes: Sequence[str], template: str, length: int, vocabulary: frozenset[int] | None = None
) -> PromptTokens:
    """Token ids of `template.format(name)` for every class, through the model's own tokenizer.

    Args:
        tokenizer: The model's own.
        classes: C names.
        template: Words with one `{}` for the name.
        length: Positions of the model.
        vocabulary: Ids that the model knows, where these are not all of its tokenizer's.

    Raises:
        TaskError: A name is empty, a prompt is too long, or a name merges with the word before it into one token.
        UnknownWordsError: A word is outside the vocabulary.
        RefusedError: The tokenizer does not put its padding last.
    """
    before, behind = split_template(template)
    if not classes:
        raise TaskError("no classes came; a task needs at least one class name")
    texts = ["", "a", before.strip(), *(f"{before}{name}{behind}" for name in classes)]
    empty, letter, words, *prompts = tokenizer(texts, context_length=_ROOM * length).tolist()
    if empty[-1] != empty[-2]:
        raise RefusedError(
            f"{type(tokenizer).__name__} puts token {empty[-1]} behind its padding; a context needs a tokenizer that "
            "pads last; use another model, or search words or pixels"
        )
    pad = empty[-1]
    start = tuple(token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(empty, letter, strict=True)))
    end = _unpadded(empty, pad)[len(start) :]
    context = _unpadded(words, pad)[len(start) :]
    context = context[: len(context) - len(end)]
    suffixes = []
    for name, row in zip(classes, prompts, strict=True):
        ids = _unpadded(row, pad)
        head = (*start, *context)
        body = ids[len(head) : len(ids) - len(end)]
        if ids[: len(head)] != head:
            raise TaskError(
                f"class {name!r} melts together with the words before it in {template=}; put a space before {{}}"
            )
        if not name.strip() or not body:
            raise TaskError(f"class {name!r} has no tokens in {template=}; every class needs a name")
        suffixes.append((*body, *end))
    found = PromptTokens(
        start=start,
        context=context,
        suffixes=tuple(suffixes),
        end=end,
        pad=pad,
        length=length,
        classes=tuple(classes),
    )
    if vocabulary is not None:
        _refuse_unknown(tokenizer, template, found, vocabulary)
    found.rows()  # refuses names that do not fit, when a box is opened
    return found


def _unpadded(row: Sequence[int], pad: int) -> tuple[int, ...]:
    size = len(row)
    while size and row[size - 1] == pad:
        size -= 1
    return tuple(row[:size])


def _refuse_unknown(tokenizer: Tokenizer, template: str, tokens: PromptTokens, vocabulary: Collection[int]) -> None:
    """Raise UnknownWordsError naming all words outside the vocabulary, and where the first occurs."""
    known = {*vocabulary, *tokens.start, *tokens.end, tokens.pad}
    if known.issuperset(chain(tokens.context, *tokens.suffixes)):
        return
    before, behind = split_template(template)
    ending = "".join(takewhile(str.isalnum, behind))  # "{}s" changes the names' words
    texts = {f"{template=}": f"{before} {behind.removeprefix(ending)}"}
    texts |= {f"class {name!r}": name + ending for name in tokens.classes}
    words = {place: [word.strip(punctuation) or word for word in text.split()] for place, text in texts.items()}
    every = list(dict.fromkeys(chain(*words.values())))
    rows = tokenizer(every, context_length=_ROOM * tokens.length).tolist()
    strange = [word for word, row in zip(every, rows, strict=True) if not known.issuperset(row)]
    places = [place for place, its in words.items() if not set(strange).isdisjoint(its)] or list(texts)
    others = "" if len(places) == 1 else f" and {len(places) - 1} more"
    raise UnknownWordsError(
        f"{places[0]}{others}: this model does not know the word{'s' if len(strange) > 1 else ''} "
        f"{few([repr(word) for word in strange or every])}; it knows {len(vocabulary)} tokens; use other words"
    )


def spelled(tokenizer: Any, vocabulary: Collection[int]) -> tuple[str, ...]:
    """The text of a vocabulary's tokens, in the order of their ids; a part of a word ends in a hyphen.

    Args:
        tokenizer: open_clip's, which decodes a token that ends a word with a space after it.
        vocabulary: Token ids.
    """
    texts = [tokenizer.decode([token]) for token in sorted(vocabulary)]
    return tuple(f"{text}-" if text.isalnum() else text.rstrip() for text in texts)
