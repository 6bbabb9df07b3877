"""What is searched: parametrizations by name, each a frozen picklable map from theta to a prompt.

Knows nothing of how theta is searched, nor of the model behind the box.
"""

from __future__ import annotations

import importlib

from engine.core import BoxSpec, Parametrization
from engine.errors import RecipeError, nearest

PROMPTS: dict[str, str] = {"text": "engine.prompts.text:text_context"}
"""name -> `module:function`, called as `f(spec, *, tokens, subspace, seed)`."""


def make_prompt(
    name: str, spec: BoxSpec, *, tokens: int | None = None, subspace: str = "full", seed: int = 1
) -> Parametrization:
    """The parametrization `name` for a box.

    Args:
        name: One of `PROMPTS`, or `package.module:function`.
        spec: What the box says of itself.
        tokens: M, the number of context tokens; None: as many as the template has.
        subspace: `full`, or `random:DIM` for a seeded random projection onto DIM dimensions.
        seed: Of the projection.

    Raises:
        RecipeError: The name or the subspace is unknown, or the number of tokens is impossible.
        RefusedError: The box does not accept this kind of prompt.
    """
    target = name if ":" in name else PROMPTS.get(name)
    if target is None:
        raise RecipeError(f"prompt {name!r}{nearest(name, PROMPTS)}; it is one of {', '.join(PROMPTS)}")
    module, _, function = target.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"prompt {name!r}: {error}; write package.module:function") from None
    return make(spec, tokens=tokens, subspace=subspace, seed=seed)
