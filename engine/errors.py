"""The errors that users see. Each inherits `KeyholeError` and the builtin that fits it.

A message has three parts: what came, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_VALUE = 100
"""Characters of a user's value that a message shows, at most."""


class KeyholeError(Exception):
    """Anything Keyhole refuses or cannot do. `exit_code` is what the command line ends with."""

    exit_code = 2


class RecipeError(KeyholeError, ValueError):
    """A setting that is unknown, malformed or without effect."""


class TaskError(KeyholeError, ValueError):
    """A task, an image or a class name that cannot be used."""


class UnknownWordsError(TaskError):
    """Class names or a template with words that a box does not know."""


class ArtifactError(KeyholeError, ValueError):
    """An artifact, checkpoint or run folder that cannot be read or written."""


class RefusedError(KeyholeError, ValueError):
    """A request that this box or method can never answer: it lacks what is needed."""


class BudgetError(KeyholeError, ValueError):
    """Spending that the budget does not allow."""


class BoxError(KeyholeError, RuntimeError):
    """A box that failed permanently."""

    exit_code = 3


class TransientBoxError(BoxError):
    """A box that failed temporarily: the same request may be sent again."""


def extra(name: str) -> str:
    """How to install a missing optional extra, for a message. Keyhole is in no package index."""
    return f"in Keyhole's checkout: pip install -e '.[{name}]'"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a message: `, did you mean 'x'?` where one of `known` resembles `word`, else ''."""
    if len(word) > LONGEST_VALUE:  # difflib takes seconds for a long one
        return ""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def few(words: Sequence[str], most: int = 8) -> str:
    """The first of many words, for a message: `a, b and 3 more`; `none` where there are none."""
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + rest or "none"


def reason(error: BaseException) -> str:
    """Why, in one line of at most 300 characters: the error's own words, or its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Short(reprlib.Repr):
    """`repr` of anything, however large or nested."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = LONGEST_VALUE

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out integers of thousands of digits.
        return repr(value) if value.bit_length() < 3 * LONGEST_VALUE else f"<a number of {value.bit_length()} bits>"


_short = _Short()


def shown(value: Any) -> str:
    """A value for a message: its `repr`, cut to `LONGEST_VALUE` characters.

    >>> shown("x" * 1000) == "'" + "x" * 47 + "..." + "x" * 48 + "'"
    True
    """
    text = _short.repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 4]} ..."
