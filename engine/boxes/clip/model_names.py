"""open_clip's model names, tags, hub repositories and folders -> a box.

File formats are read in weights.py; the box itself is in box.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from engine.boxes import BoxRequest
from engine.boxes.clip.box import OPTIONS, ClipBox
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
from engine.errors import RecipeError, few, nearest

_SUFFIX = "-quickgelu"


def open_named(request: BoxRequest) -> ClipBox:
    """Open `open_clip:MODEL,WEIGHTS`, WEIGHTS being a published tag, a file, or `random`.

    Options: `seed` of random weights; `activation` (quickgelu or gelu) and `tag` (the published weights whose
    activation and preprocessing apply) of a file; and `box.OPTIONS`.

    Raises:
        RecipeError: The model, the weights or an option is unknown, or the box cannot tell what a file needs.
        BoxError: Published weights could not be fetched.
    """
    uri, options = request.uri, request.options
    name, comma, weights = request.rest.partition(",")
    if name not in open_clip.list_models():
        raise RecipeError(
            f"box {uri!r}: open_clip has no model {name!r}{nearest(name, open_clip.list_models())}; "
            "write open_clip:MODEL,WEIGHTS"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not comma or not weights:
        raise RecipeError(
            f"box {uri!r}: which weights of {name}? write open_clip:{name},WEIGHTS with a file, `random`, "
            f"or a published tag ({few(tags, 6)})"
        )
    if weights == "random":
        request.allow("seed", *OPTIONS)
        model, identity = random_model(uri, name, options.get("seed", "0"))
    elif (tag := weights.lower().replace("-", "_")) in tags:
        request.allow(*OPTIONS)
        published = open_clip.get_pretrained_cfg(name, tag)
        path = fetched(uri, lambda: open_clip.download_pretrained(published))
        model, identity = model_from_file(uri, name, Path(path), _quick(name, published), published)
    elif Path(weights).is_file():
        request.allow("activation", "tag", *OPTIONS)
        quick, published = _meaning(uri, name, options)
        model, identity = model_from_file(uri, name, Path(weights), quick, published)
    else:
        if "/" in weights or "." in weights:
            raise RecipeError(f"box {uri!r}: there is no weights file {weights!r}; check the path")
        raise RecipeError(
            f"box {uri!r}: {weights!r} is no tag of {name}{nearest(weights, tags)} and no file; "
            f"its published tags: {few(tags, 6)}"
        )
    return _box(name, model, identity, request)


def open_hub(request: BoxRequest) -> ClipBox:
    """Open `hf-hub:ORG/REPO` by open_clip's own loading.

    Raises:
        RecipeError: The repository is named wrongly, or an option is unknown.
        BoxError: It could not be fetched.
    """
    request.allow(*OPTIONS)
    if request.rest.count("/") != 1 or not all(request.rest.split("/")):
        raise RecipeError(f"box {request.uri!r}: a repository is named hf-hub:ORG/REPO")
    return _open_elsewhere(request, f"hf-hub:{request.rest}", f"hf-hub:{request.rest}")


def open_folder(request: BoxRequest) -> ClipBox:
    """Open `local-dir:PATH`, a folder with open_clip_config.json and weights, by open_clip's own loading.

    Raises:
        RecipeError: There is no such folder, or an option is unknown.
        BoxError: What lies there could not be loaded.
    """
    request.allow(*OPTIONS)
    path = Path(request.rest)
    if not (path / "open_clip_config.json").is_file():
        raise RecipeError(
            f"box {request.uri!r}: no open_clip_config.json in {request.rest!r}; name a folder that open_clip wrote"
        )
    # Its name and not its path: the same folder on another machine is the same model.
    return _open_elsewhere(request, f"local-dir:{request.rest}", f"local-dir:{path.resolve().name}")


def _open_elsewhere(request: BoxRequest, name: str, known_as: str) -> ClipBox:
    """A model whose configuration is stored beside its weights."""
    model = fetched(request.uri, lambda: open_clip.create_model(name, require_pretrained=True))
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    return _box(name, model, identity_of(known_as, state_sha256(model), quick), request)


def _quick(name: str, published: Mapping[str, Any]) -> bool:
    """Whether published weights need quick-GELU, by their tag or by the model's configuration."""
    return bool(published.get("quick_gelu", open_clip.get_model_config(name).get("quick_gelu", False)))


def _meaning(uri: str, name: str, options: Mapping[str, str]) -> tuple[bool, Mapping[str, Any]]:
    """The activation (whether quick-GELU) and the published preprocessing for a file, which stores neither.

    Raises RecipeError where more than one is possible and no option says which.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if (tag := options.get("tag")) is not None and tag not in tags:
        raise RecipeError(f"box {uri!r}: tag={tag}{nearest(tag, tags)}; the tags of {name}: {few(tags, 6)}")
    if (activation := options.get("activation")) is not None and activation not in ACTIVATIONS:
        raise RecipeError(f"box {uri!r}: activation={activation}; it is {' or '.join(ACTIVATIONS)}")
    if activation is not None:
        quick = activation == ACTIVATIONS[0]
    elif tag is not None:
        quick = _quick(name, open_clip.get_pretrained_cfg(name, tag))
    elif name + _SUFFIX in open_clip.list_models():
        # open_clip has both variants of this model, with the same names and shapes of weights.
        raise RecipeError(
            f"box {uri!r}: weights of {name} were trained with GELU or with quick-GELU and the file does not tell; "
            "add ?activation=quickgelu (OpenAI's own weights), ?activation=gelu, or ?tag=TAG of the published weights "
            f"that the file holds ({few(tags, 6)})"
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
        described = " or ".join(few(names, 6) for names in ways.values())
        raise RecipeError(
            f"box {uri!r}: published weights of {name} differ in their preprocessing and the file does not tell "
            f"which it needs; add ?tag=TAG, one like {described}"
        )
    return quick, published[alike[0]] if alike else {}


def _box(name: str, model: nn.Module, identity: dict[str, Any], request: BoxRequest) -> ClipBox:
    tokenizer = fetched(request.uri, lambda: open_clip.get_tokenizer(name))
    return ClipBox(model.eval(), tokenizer, preprocess_of(model), request, identity=identity)
