"""open_clip's names, tags and folders -> a box: what a box URI means in open_clip's own world.

Knows nothing of file formats (weights.py) or of how a box answers (clip.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from engine.boxes import refuse_unknown
from engine.boxes.clip.box import OPTIONS, ClipBox, settings_of
from engine.boxes.clip.weights import (
    ACTIVATIONS,
    PREPROCESSING,
    fetched,
    identity_of,
    model_from_file,
    preprocess_of,
    random_model,
    state_sha256,
)
from engine.errors import RecipeError, nearest

_SUFFIX = "-quickgelu"


def open_named(
    rest: str,
    *,
    uri: str,
    classes: tuple[str, ...],
    template: str,
    gives: frozenset[str] | None,
    device: str,
    options: Mapping[str, str],
) -> ClipBox:
    """`open_clip:MODEL,WEIGHTS`: a published tag, a file, or `random`.

    Options: `seed` of random weights; `activation` (quickgelu or gelu) and `tag` (the published weights whose
    activation and preprocessing apply) of a file; those of `clip.settings_of`.

    Raises:
        RecipeError: The model, the weights or an option is unknown, or the box cannot tell what a file needs.
        BoxError: Published weights could not be fetched.
    """
    name, comma, weights = rest.partition(",")
    if name not in open_clip.list_models():
        raise RecipeError(
            f"box {uri!r}: open_clip has no model {name!r}{nearest(name, open_clip.list_models())}; "
            "write open_clip:MODEL,WEIGHTS"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not comma or not weights:
        raise RecipeError(
            f"box {uri!r}: which weights of {name}? write open_clip:{name},WEIGHTS with a file, `random`, "
            f"or a published tag ({_some(tags)})"
        )
    if weights == "random":
        refuse_unknown(uri, options, ("seed", *OPTIONS))
        model, identity = random_model(uri, name, options.get("seed", "0"))
    elif (tag := weights.lower().replace("-", "_")) in tags:
        refuse_unknown(uri, options, OPTIONS)
        published = open_clip.get_pretrained_cfg(name, tag)
        path = fetched(uri, lambda: open_clip.download_pretrained(published))
        model, identity = model_from_file(uri, name, Path(path), _quick(name, published), published)
    elif Path(weights).is_file():
        refuse_unknown(uri, options, ("activation", "tag", *OPTIONS))
        quick, published = _meaning(uri, name, options)
        model, identity = model_from_file(uri, name, Path(weights), quick, published)
    else:
        if "/" in weights or "." in weights:
            raise RecipeError(f"box {uri!r}: there is no weights file {weights!r}; check the path")
        raise RecipeError(
            f"box {uri!r}: {weights!r} is no tag of {name}{nearest(weights, tags)} and no file; "
            f"its published tags: {_some(tags)}"
        )
    tokenizer = fetched(uri, lambda: open_clip.get_tokenizer(name))
    task: dict[str, Any] = {"classes": classes, "template": template, "gives": gives}
    return _box(model, tokenizer, identity, uri, device, options, task)


def open_hub(rest: str, *, uri: str, device: str, options: Mapping[str, str], **task: Any) -> ClipBox:
    """`hf-hub:ORG/REPO`, by open_clip's own loading. Raises BoxError where it cannot be fetched."""
    refuse_unknown(uri, options, OPTIONS)
    if rest.count("/") != 1 or not all(rest.split("/")):
        raise RecipeError(f"box {uri!r}: a repository is named hf-hub:ORG/REPO")
    return _open_elsewhere(f"hf-hub:{rest}", f"hf-hub:{rest}", uri, device, options, task)


def open_folder(rest: str, *, uri: str, device: str, options: Mapping[str, str], **task: Any) -> ClipBox:
    """`local-dir:PATH`, a folder with open_clip_config.json and weights, by open_clip's own loading."""
    refuse_unknown(uri, options, OPTIONS)
    if not (Path(rest) / "open_clip_config.json").is_file():
        raise RecipeError(f"box {uri!r}: no open_clip_config.json in {rest!r}; name a folder that open_clip wrote")
    # Its name and not its path: the same folder on another machine is the same model.
    return _open_elsewhere(f"local-dir:{rest}", f"local-dir:{Path(rest).resolve().name}", uri, device, options, task)


def _open_elsewhere(
    name: str, known_as: str, uri: str, device: str, options: Mapping[str, str], task: dict[str, Any]
) -> ClipBox:
    """A model whose configuration lies beside its weights."""
    model = fetched(uri, lambda: open_clip.create_model(name, require_pretrained=True))
    tokenizer = fetched(uri, lambda: open_clip.get_tokenizer(name))
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    return _box(model, tokenizer, identity_of(known_as, state_sha256(model), quick), uri, device, options, task)


def _quick(name: str, published: Mapping[str, Any]) -> bool:
    """Whether published weights want quick-GELU: the tag says it, or the model's own configuration."""
    return bool(published.get("quick_gelu", open_clip.get_model_config(name).get("quick_gelu", False)))


def _meaning(uri: str, name: str, options: Mapping[str, str]) -> tuple[bool, Mapping[str, Any]]:
    """The activation and the published preprocessing that apply to a file, which has neither in it.

    Raises:
        RecipeError: More than one is possible and no option says which.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if (tag := options.get("tag")) is not None and tag not in tags:
        raise RecipeError(f"box {uri!r}: tag={tag}{nearest(tag, tags)}; the tags of {name}: {_some(tags)}")
    if (activation := options.get("activation")) is not None and activation not in ACTIVATIONS:
        raise RecipeError(f"box {uri!r}: activation={activation}; it is {' or '.join(ACTIVATIONS)}")
    if activation is not None:
        quick = activation == ACTIVATIONS[0]
    elif tag is not None:
        quick = _quick(name, open_clip.get_pretrained_cfg(name, tag))
    elif name + _SUFFIX in open_clip.list_models():
        # open_clip has this model in both variants, and their weights have the same names and shapes.
        raise RecipeError(
            f"box {uri!r}: weights of {name} were trained with GELU or with quick-GELU and the file does not tell; "
            "add ?activation=quickgelu (OpenAI's own weights), ?activation=gelu, or ?tag=TAG of the published weights "
            f"that the file holds ({_some(tags)})"
        )
    else:
        quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    published = {known: open_clip.get_pretrained_cfg(name, known) for known in tags}
    if tag is not None:
        return quick, published[tag]
    alike = [known for known in tags if _quick(name, published[known]) == quick] or tags
    ways: dict[tuple[Any, ...], list[str]] = {}
    for known in alike:
        key = tuple(published[known].get(part) for part in PREPROCESSING)
        ways.setdefault(key, []).append(known)
    if len(ways) > 1:
        described = " or ".join(_some(names) for names in ways.values())
        raise RecipeError(
            f"box {uri!r}: published weights of {name} differ in their preprocessing and the file does not tell "
            f"which it needs; add ?tag=TAG, one like {described}"
        )
    return quick, published[alike[0]] if alike else {}


def _some(tags: Sequence[str]) -> str:
    """The first few of many tags, for a message."""
    return ", ".join(tags[:6]) + (f" and {len(tags) - 6} more" if len(tags) > 6 else "") if tags else "none"


def _box(
    model: nn.Module,
    tokenizer: Any,
    identity: dict[str, Any],
    uri: str,
    device: str,
    options: Mapping[str, str],
    task: dict[str, Any],
) -> ClipBox:
    settings = settings_of(uri, options, device)
    return ClipBox(
        model.eval(), tokenizer, preprocess_of(model), identity=identity, uri=uri, device=device, **settings, **task
    )
