"""How the commands print what they found. Knows nothing of what that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from tuning.answer import Answer

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout and nothing else there.")


def give(facts: Mapping[str, Any]) -> None:
    """The one object of a command with --json."""
    answer = click.get_current_context().find_object(Answer)
    assert answer is not None, "main() makes it"
    answer.give(facts)


def print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    """A command's facts, as its object or as a line each."""
    if as_json:
        give(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {_shown(value)}")


def _shown(value: Any) -> str:
    """A fact as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value)) or "none"
    return {None: "-", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)
