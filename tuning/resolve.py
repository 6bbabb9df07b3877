"""The resolved recipe: what a recipe leaves open, filled in.

Precedence of a prompt's fields: the recipe, the `start` artifact, the method's defaults, the box.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from engine import search
from engine.artifact import Artifact
from engine.errors import ArtifactError, RecipeError
from engine.outcome import check_head
from engine.prompts import PROMPTS
from engine.prompts.pixels import default_width
from engine.protocols import BoxSpec, Method, Prefers
from engine.tuning_loop import SearchMethod
from tuning.data.load_task import located
from tuning.recipe import PromptRecipe, Recipe, make_recipe


def method_of(recipe: Recipe) -> Method:
    """The recipe's method. Raises RecipeError for a name, an option or a head that does not exist, or does not fit."""
    method = search.make(recipe.method, recipe.options)
    if recipe.head is not None and not isinstance(method, SearchMethod):
        raise RecipeError(
            f"head={recipe.head!r} joins a prompt method, not {recipe.method}; use method=head:NAME alone"
        )
    if recipe.head != method.prefers.head:
        check_head(recipe.head)
    return method


def joined_head(recipe: Recipe, method: Method, spec: BoxSpec | None) -> str | None:
    """The head that is joined to the prompt: the recipe's, else the method's own.

    A mixture of templates takes features: on a box without them (or a box that is not open yet) the best template is
    all there is.
    """
    head = recipe.head or method.prefers.head
    return None if head == "templates" and (spec is None or "features" not in spec.gives) else head


def prompt_of(recipe: Recipe, method: Method | None = None) -> PromptRecipe:
    """The recipe's prompt, with what it leaves open: that of the prompt it starts from, else the kind that a method is
    for, its number of tokens, whether it has a context per class, its subspace of text, or full.

    Raises RecipeError for another kind than the method is for, ArtifactError where the start cannot be read.
    """
    prompt = recipe.prompt
    prefers = method.prefers if method else Prefers()
    own = prefers.prompt
    if own is not None:
        if prompt.name not in (PromptRecipe.name, own):
            raise RecipeError(f"prompt.name={prompt.name!r}: method {recipe.method} searches {own}; leave it out")
        prompt = replace(prompt, name=own)
    if recipe.start is not None:
        begun = Artifact.load(recipe.start).meta["parametrization"] or {"name": PromptRecipe.name}
        if begun["name"] in PROMPTS and own is None and prompt.name == PromptRecipe.name:
            prompt = replace(prompt, name=begun["name"])  # an artifact may choose among ours, and names no code
        if begun["name"] != prompt.name:
            raise ArtifactError(
                f"start={recipe.start}: its prompt is {begun['name']}, this run searches {prompt.name}; "
                "start from a run with the same kind of prompt"
            )
        return replace(prompt, **{key: begun.get(key) for key, value in asdict(prompt).items() if value is None})
    if prompt.tokens is None and "text" in prompt.name:
        prompt = replace(prompt, tokens=prefers.tokens)
    if prompt.name == "text":
        if prompt.per_class is None:
            prompt = replace(prompt, per_class=prefers.per_class)
        if prompt.subspace is None:
            prompt = replace(prompt, subspace=prefers.subspace)
    return prompt if prompt.subspace else replace(prompt, subspace="full")


def resolved(recipe: Recipe, method: Method, spec: BoxSpec | None = None) -> Recipe:
    """The recipe with every default written out, so that it makes the same run whatever the defaults become.

    Null stays where it is itself a value (`rows`: all of them), where a setting does not apply, and where the prompt's
    space settles it (a method's `unit` and `parts`).

    Args:
        recipe: as the user gave it.
        method: the recipe's.
        spec: of the open box; None: what only the box settles (the template's tokens, say) stays open.
    """
    prompt = prompt_of(recipe, method)
    filled = replace(
        recipe,
        task=located(recipe.task),
        start=None if recipe.start is None else str(Path(recipe.start).absolute()),
        data_seed=recipe.sample_seed,
        prompt=prompt if spec is None else _completed(prompt, spec),
        head=joined_head(recipe, method, spec),
        options={**recipe.options, **search.options_of(recipe.method, method)},
    )
    return make_recipe(filled.as_dict())  # as it is read back: `cpus: 1` is 1.0


def _completed(prompt: PromptRecipe, spec: BoxSpec) -> PromptRecipe:
    """The prompt with what only the box settles."""
    if prompt.name in ("text", "text+pixels") and prompt.tokens is None and spec.text is not None:
        prompt = replace(prompt, tokens=len(spec.text.context))
    if prompt.name == "text" and prompt.per_class is None:
        prompt = replace(prompt, per_class=False)
    if prompt.name in ("pixels", "text+pixels") and prompt.width is None:
        prompt = replace(prompt, width=default_width(spec.image_size))
    return prompt
