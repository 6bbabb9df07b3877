"""The embedded world: tiny CLIP models that this repository trains and ships, and tasks that need no download.

Knows nothing of search, of serving, or of any model but its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.boxes import BoxRequest
    from engine.protocols import BlackBox


def open_box(request: BoxRequest) -> BlackBox:
    """Open `mini:NAME`.

    Raises:
        RecipeError: an unknown name or option.
        UnknownWordsError: classes or a template with words that these models were not trained on.
    """
    from engine.boxes.clip.box import OPTIONS, ClipBox
    from engine.errors import UnknownWordsError
    from engine.preprocessing import Preprocess
    from miniature import models

    request.allow(*OPTIONS)
    name = request.rest
    loaded = models.load(name)
    try:
        return ClipBox(
            loaded.model,
            loaded.tokenizer,
            Preprocess(size=loaded.image_size, mean=loaded.mean, std=loaded.std, interpolation=loaded.interpolation),
            request,
            identity={"weights": loaded.weights_hash, "model": f"mini:{name}", "activation": "gelu"},
            vocabulary=loaded.vocabulary,
        )
    except UnknownWordsError as error:
        raise UnknownWordsError(
            f"{error} (`keyhole doctor --box mini:{name}` lists them), or a real model in place of mini:{name}, which "
            "is a toy: --box open_clip:ViT-B-32,laion2b_s34b_b79k fetches one, --box open_clip:ViT-B-32,FILE opens "
            "weights that you have"
        ) from error
