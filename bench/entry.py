"""A bench as a command: its settings, what it measures, the table that a person reads, and the exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from engine.errors import RecipeError
from tuning.compare.comparison import split_list


class Parser(argparse.ArgumentParser):
    """Reads the arguments of `keyhole bench NAME`; a wrong one is a RecipeError."""

    def __init__(self, name: str, about: str) -> None:
        super().__init__(prog=f"keyhole bench {name}", description=about)
        self.add_argument("--json", action="store_true", help="print all numbers as one JSON object")

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}; {self.prog} --help lists the settings")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One of `bench.commands.BENCHES`."""

    settings: Callable[[Parser], None]
    """Adds its arguments to a parser."""
    measure: Callable[[argparse.Namespace], dict[str, Any]]
    """Settings to numbers, as plain JSON values. Raises KeyholeError for a user's mistake."""
    table: Callable[[Any], str]
    """The numbers in Markdown."""
    verdict: Callable[[argparse.Namespace, Any], int] = lambda given, found: 0
    """The exit code for what was found."""

    def run(self, name: str, about: str, arguments: Sequence[str], answer: Callable[[Mapping[str, Any]], None]) -> int:
        """Parse, measure, and print a table or hand over one object.

        Args:
            name: Of the command.
            about: A line for `--help`.
            arguments: Its words.
            answer: Takes the object of `--json`.

        Returns:
            The exit code.

        Raises:
            KeyholeError: A user's mistake.
        """
        parser = Parser(name, about)
        self.settings(parser)
        given = parser.parse_args(arguments)
        found = self.measure(given)
        if given.json:
            answer(found)
        else:
            print(self.table(found))
        return self.verdict(given, found)


def numbers(text: str, kind: type) -> list[Any]:
    """Numbers divided by commas. Raises RecipeError for anything else."""
    try:
        return [kind(word) for word in split_list(text)]
    except ValueError:
        raise RecipeError(f"{text!r} must be numbers divided by commas") from None


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: object) -> str:
    """The first two rows of a Markdown table."""
    return f"{line(*cells)}\n{'|---' * len(cells)}|"
