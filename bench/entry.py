"""What all benches have in common as commands: their parser, `--json`, errors and exit codes.

Knows nothing of what they measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from engine.errors import KeyholeError, RecipeError
from tuning.compare.comparison import split_list

Answering = Callable[[Mapping[str, Any]], None] | None


class Parser(argparse.ArgumentParser):
    """Of the bench that `keyhole bench NAME` runs; an argument that is wrong is a RecipeError."""

    def __init__(self, name: str, page: str | None) -> None:
        super().__init__(prog=f"keyhole bench {name}", description=(page or "").split("\n")[0])
        self.add_argument("--json", action="store_true", help="print all numbers as one JSON object")

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}; {self.prog} --help lists the settings")


def enter(
    parser: Parser,
    arguments: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    table: Callable[[Any], str],
    *,
    answer: Answering = None,
    verdict: Callable[[argparse.Namespace, Any], int] = lambda given, found: 0,
) -> int:
    """Parse, measure, and print a table or one JSON object. Returns the exit code.

    Args:
        measure: settings to numbers, as plain JSON values.
        table: what a person reads of them.
        answer: takes the object, and its owner the errors; None: both are printed here.
        verdict: an exit code for what was found.

    Raises KeyholeError for a user's mistake where there is an `answer`.
    """
    try:
        given = parser.parse_args(arguments)
        found = measure(given)
    except KeyholeError as error:
        if answer is not None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not given.json:
        print(table(found))
    elif answer is not None:
        answer(found)
    else:
        print(json.dumps(found))
    return verdict(given, found)


def numbers(text: str, kind: type) -> list[Any]:
    """Numbers divided by commas. Raises RecipeError for anything else."""
    try:
        return [kind(word) for word in split_list(text)]
    except ValueError:
        raise RecipeError(f"{text!r} must be numbers divided by commas") from None
