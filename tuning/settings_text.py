"""Settings as people write them: the part of YAML that settings need.

Mappings with text keys, lists, text, numbers, booleans and null, a few levels deep. No aliases, which can expand a few
lines to gigabytes; no tags; no dates; no key twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from engine.errors import LONGEST_VALUE, RecipeError, shown

DEEPEST = 20
"""Levels of mappings and lists."""
LARGEST = 2**17
"""Bytes of a file."""
_TOO_DEEP = f"nested more than {DEEPEST} levels deep"


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` restricted to settings. Its errors are `yaml.MarkedYAMLError`."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        # The scanner reads ahead, which takes a second for a thousand brackets.
        if self.flow_level == DEEPEST:
            raise _error(_TOO_DEEP, self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"*{event.anchor} stands for what is elsewhere; write it out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _error(f"the tag {event.tag} is not read; leave it out", event.start_mark)
        if self.depth == DEEPEST:
            raise _error(_TOO_DEEP, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key must be text", key_node.start_mark)
            key = key_node.value
            if key in made:
                raise _error(f"the key {shown(key)} stands there twice; give it once", key_node.start_mark)
            made[key] = self.construct_object(value_node, deep=True)
        return made

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):  # an integer of more digits than Python converts, 0b_, 1:2e999
            raise _error(f"{shown(node.value)} is no number", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node))


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def read(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """The settings in a YAML file, UTF-8 or UTF-16 with a byte order mark; {} for an empty file.

    `what` names the file in messages. Raises RecipeError where it is missing, too large, binary, or no settings.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: an impossible path
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{what} {path} cannot be read: {reason}") from error
    if len(data) > LARGEST:
        raise RecipeError(f"{what} {path} is larger than {LARGEST} bytes, which no {what} is")
    settings = parse(data, f"{what} {path}")
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise RecipeError(f"{what} {path} holds a {type(settings).__name__}, not `key: value` lines")
    return settings


def parse(text: str | bytes, where: str) -> Any:
    """The value of a YAML text. Raises RecipeError, beginning with `where`, where it is malformed."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark, lines = error.problem_mark, text.count(b"\n" if isinstance(text, bytes) else "\n")
        line = f", line {mark.line + 1}" if mark is not None and lines else ""
        raise RecipeError(f"{where} is not YAML for settings{line}: {_cut(error.problem)}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        reason = getattr(error, "reason", "it is damaged")
        raise RecipeError(f"{where} is not YAML for settings: it is no text ({_cut(reason)})") from None


def override(word: str, example: str) -> tuple[str, Any]:
    """Key and value of `key=value`, whose value is YAML.

    >>> override("budget=500", "seed=2")
    ('budget', 500)

    Raises RecipeError, which quotes `example`, for another form.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise RecipeError(f"{shown(word)} is not key=value; for example {example}")
    value = parse(text, f"the value of {shown(key)}") if len(text) <= LARGEST else text
    # `task=toy:` is a name that ends in a colon, not a mapping.
    return key, text if isinstance(value, dict) and not text.lstrip().startswith("{") else value


def _cut(text: str | None) -> str:
    line = "".join(c if c.isprintable() else " " for c in text or "")
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 4]} ..."
