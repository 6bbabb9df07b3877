"""The embedded world: tiny CLIP models that this repository trains and ships, and tasks that need no download.

Knows nothing of search, of serving, or of any model but its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.protocols import BlackBox


def open_box(
    rest: str,
    *,
    uri: str,
    classes: tuple[str, ...],
    template: str,
    gives: frozenset[str] | None,
    device: str,
    options: Mapping[str, str],
) -> BlackBox:
    """Open `mini:NAME` as a box (what `engine.boxes.open_box` calls for this scheme).

    Raises:
        RecipeError: an unknown name or option.
        UnknownWordsError: classes or a template with words that these models were not trained on.
    """
    from engine.boxes import refuse_unknown
    from engine.boxes.clip.box import OPTIONS, ClipBox, settings_of
    from engine.errors import UnknownWordsError
    from engine.preprocessing import Preprocess
    from miniature import models

    refuse_unknown(uri, options, OPTIONS)
    settings = settings_of(uri, options, device)
    loaded = models.load(rest)
    try:
        return ClipBox(
            loaded.model,
            loaded.tokenizer,
            Preprocess(size=loaded.image_size, mean=loaded.mean, std=loaded.std, interpolation="bicubic"),
            uri=uri,
            classes=classes,
            template=template,
            gives=gives,
            device=device,
            identity={"weights": loaded.weights_hash, "model": f"mini:{rest}", "activation": "gelu"},
            vocabulary=loaded.vocabulary,
            **settings,
        )
    except UnknownWordsError as error:
        raise UnknownWordsError(
            f"{error} (`keyhole doctor --box mini:{rest}` lists them), or a real model in place of mini:{rest}, which "
            "is a toy: --box open_clip:ViT-B-32,laion2b_s34b_b79k fetches one, --box open_clip:ViT-B-32,FILE opens "
            "weights that you have"
        ) from error
