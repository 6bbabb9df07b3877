"""Settings as people write them: YAML, and of YAML what settings need.

Mappings with one value a key, lists, text, numbers, booleans and null, a few levels deep. No aliases, which can make
gigabytes of a few lines; no tags; no dates. A mapping's keys are text.
Knows nothing of what the settings mean.
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
    """`yaml.SafeLoader`, for settings. Its errors are `yaml.MarkedYAMLError`."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":timestamp", ":merge", ":value"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        # The scanner reads ahead: for a thousand brackets that takes it a second.
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
    """The settings of a YAML file in UTF-8, or in UTF-16 that says so; none of an empty one.

    Args:
        what: the file's part, for messages.

    Raises RecipeError for a file that is missing, too large or binary, or that holds something else than settings.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a path that none can be
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
    """The value of a YAML text. Raises RecipeError, with `where` in front, for one that is malformed."""
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
    """Key and value of a `key=value` word, whose value is YAML.

    >>> override("budget=500", "seed=2")
    ('budget', 500)

    Raises RecipeError for a word of another form.
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
