"""What is searched: parametrizations by name, each a frozen picklable map from theta to a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from engine.errors import RecipeError, RefusedError, nearest
from engine.parsing import resolve
from engine.protocols import BoxSpec, Parametrization

PROMPTS: dict[str, str] = {
    "text": "engine.prompts.text:text_context",
    "pixels": "engine.prompts.pixels:pixel_frame",
    "text+pixels": "engine.prompts.joint:text_and_pixels",
    "words": "engine.prompts.words:words",
}
"""name -> `module:function`, called as `f(spec, *, subspace, seed, **options)` with the keywords that it declares."""

ABOUT: dict[str, str] = {
    "text": "vectors in place of the template's words before the class name",
    "pixels": "a frame of pixels added around every image",
    "text+pixels": "both at once",
    "words": "templates in plain words, for boxes that take only words",
}
"""One line about each."""


def make_prompt(
    name: str,
    spec: BoxSpec,
    *,
    tokens: int | None = None,
    subspace: str = "full",
    seed: int = 1,
    options: Mapping[str, Any] | None = None,
) -> Parametrization:
    """The parametrization `name` for a box.

    Args:
        name: One of `PROMPTS`, or `package.module:function`.
        spec: The box's description.
        tokens: M, the number of context tokens; None: as many as the template has.
        subspace: `full`, or `random:DIM` for a seeded random projection onto DIM dimensions (a number, or a share
            such as 1/4); for text also `vocabulary:K` and `low-rank:RANK` (subspaces.py).
        seed: For the projection.
        options: The prompt's own settings, such as `width` and `grid` of pixels. None as a value leaves one unset.

    Raises:
        RecipeError: The name, an option or the subspace is unknown, or a setting is impossible.
        RefusedError: The box does not accept this kind of prompt.
    """
    target = name if ":" in name else PROMPTS.get(name)
    if target is None:
        raise RecipeError(f"prompt {name!r}{nearest(name, PROMPTS)}; it is one of {', '.join(PROMPTS)}")
    make = resolve(target, f"prompt {name!r}")
    settings = {"tokens": tokens, **(options or {})}
    parameters = inspect.signature(make).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("subspace", "seed")]
    for key, value in settings.items():
        if key not in known and value is not None:
            raise RecipeError(
                f"prompt {name!r} has no setting {key!r}{nearest(key, known)}; it has {', '.join([*known, 'subspace'])}"
            )
    return make(spec, subspace=subspace, seed=seed, **{key: settings[key] for key in known if key in settings})


# For the rooms.


def require(spec: BoxSpec, kind: str) -> None:
    """Raises RefusedError where a box does not accept this kind of prompt: context, pixels or words."""
    if kind not in spec.accepts:
        raise RefusedError(
            f"box {spec.uri!r} accepts {', '.join(sorted(spec.accepts)) or 'no prompt'}, not {kind}; "
            "choose a prompt that it accepts"
        )
