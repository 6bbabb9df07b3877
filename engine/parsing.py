"""How things are named: URIs of tasks and boxes `scheme:rest?option=value&option=value`, and `package.module:Name`.

Knows nothing of which schemes and options there are.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from urllib.parse import parse_qsl

from engine.errors import RecipeError

QUESTION_MARK = "%3F"
"""A `?` of a path, which would otherwise begin the options."""


def parse_uri(uri: str, what: str) -> tuple[str, str, dict[str, str]]:
    """Split a URI into scheme, rest and options.

    >>> parse_uri("open_clip:ViT-B-16,openai?gives=scores&seed=3", "box")
    ('open_clip', 'ViT-B-16,openai', {'gives': 'scores', 'seed': '3'})
    >>> parse_uri("folder:who%3F?template=a {}", "task")
    ('folder', 'who?', {'template': 'a {}'})

    Args:
        uri: As a user wrote it. Without a colon, all of it is the scheme and the rest is empty.
        what: "task" or "box", for messages.

    Raises RecipeError where an option is malformed, empty or given twice, or a `?` belongs to the path of an existing
    file.
    """
    scheme, _, tail = uri.partition(":")
    rest, _, query = tail.partition("?")
    if path := _path_with_question_mark(tail):
        written = tail.replace(path, path.replace("?", QUESTION_MARK), 1)
        raise RecipeError(
            f"{what} {uri!r}: a `?` begins the options, but {path!r} is a path; write {QUESTION_MARK} for the `?` of a "
            f"path: {scheme}:{written}"
        )
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        pair = parse_qsl(part, keep_blank_values=True)
        if len(pair) != 1 or not pair[0][0] or not pair[0][1]:
            raise RecipeError(
                f"{what} {uri!r}: option {part!r}; options are written ?name=value&name=value, an & in a value %26"
            )
        name, value = pair[0]
        if name in options:
            raise RecipeError(f"{what} {uri!r}: option {name!r} is given twice; give it once")
        options[name] = value
    return scheme, rest.replace(QUESTION_MARK, "?"), options


def without_options(uri: str, names: Collection[str]) -> str:
    """A URI without the options of these names.

    >>> without_options("mini:resnet?jpeg=60&gives=scores", ["jpeg"])
    'mini:resnet?gives=scores'
    """
    plain, _, query = uri.partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] not in names]
    return f"{plain}?{'&'.join(kept)}" if kept else plain


def resolve(path: str, what: str) -> Any:
    """The object that `package.module:Name` names. Raises RecipeError, with `what` in front, where there is none."""
    try:
        return resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"{what}: {path} cannot be imported ({error}); write package.module:Name") from error


def _path_with_question_mark(tail: str) -> str:
    """The longest existing path that the first `?` would cut; "" where there is none."""
    marks = [place for place, letter in enumerate(tail) if letter == "?"]
    for end in (len(tail), *reversed(marks[1:])) if marks else ():
        for path in (tail[:end], tail[:end].partition(",")[2]):  # behind the comma: a box's weights
            if "?" in path and "\0" not in path and len(path) < 4096 and _exists(path):
                return path
    return ""


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, letters that no path has
        return False
