"""What an artifact may hold: the types and ranges of its metadata, the names and shapes of its arrays.

An artifact is untrusted and perhaps damaged: all of it is checked before any of it is used. It names tasks, boxes and
heads as data; code that resolves these names must not import what they say (`load_pool(allow_code=False)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from engine.errors import ArtifactError
from engine.heads import HEADS, Head, restore
from engine.heads.template_mixture import MixtureHead
from engine.protocols import Array

FORMAT = 2

RANKS: dict[str, tuple[int, ...]] = {"theta": (1,), "context": (2, 3), "pixels": (3,), "text_features": (2,)}
"""Float32 arrays and the numbers of axes they may have. The others are `words` and `head.KIND.FIELD`."""
PARTS = {"text": {"context"}, "pixels": {"pixels"}, "text+pixels": {"context", "pixels"}, "words": {"words"}}
"""Arrays that each of our kinds of prompt decodes to."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable")
    return text


def _template(text: str) -> str:
    if text.count("{}") != 1:
        raise ValueError("must hold one {} for the class name")
    return text


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("must all be different")
    return names


def _head(name: str) -> str:
    if name not in (*HEADS, MixtureHead.kind):
        raise ValueError(f"must be one of {', '.join((*HEADS, MixtureHead.kind))}")
    return name


Text = Annotated[str, StringConstraints(min_length=1, max_length=5_000)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=2_000), AfterValidator(_printable)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=1, le=2**31)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TaskOrigin(_Model):
    """Where the few-shot sample came from."""

    uri: Line
    shots: Number
    half: Literal["all", "base", "new"]
    seed: Annotated[int, Field(ge=0, lt=2**64)]


class PromptSettings(_Model):
    """The prompt's settings in the resolved recipe."""

    name: Line
    tokens: Number | None
    per_class: bool | Number | None
    subspace: Line
    width: Number | None
    grid: Number | None


class Metrics(_Model):
    """What the run measured, accuracies on `test_images` of the test split."""

    test_images: Number
    zero_shot_accuracy: Share | None
    accuracy: Share | None
    """None where the test split has not been read."""
    val_accuracy: Share | None
    train_loss: float | None


class Contains(_Model):
    """Whether it holds features or labels of training images."""

    training_features: bool
    training_labels: bool


class Metadata(_Model):
    """`keyhole.json` without its format and its checksum."""

    keyhole: Line
    box: Line
    identity: dict[Line, JsonValue]
    """What must agree for the artifact to mean the same: weights hash, preprocessing, activation."""
    provenance: dict[Line, JsonValue]
    """Where it was computed: device, CPU, builds, a canary's bits, the box's implementation."""
    task: TaskOrigin
    classes: Annotated[list[Text], Field(min_length=1, max_length=1_000_000), AfterValidator(_distinct)]
    template: Annotated[Text, AfterValidator(_template)]
    parametrization: PromptSettings | None
    """None where the method searched no prompt."""
    method: Line
    head: Annotated[Line, AfterValidator(_head)] | None
    ledger: dict[Line, int | float | None]
    metrics: Metrics
    contains: Contains
    licence: dict[Line, Text | None]


def check_meta(meta: Any) -> None:
    """Raises ArtifactError naming the first entry that is missing, unknown, or of a wrong type or range."""
    try:
        Metadata.model_validate(meta)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:100] or "its content"
        said = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{where}: {said[0].lower()}{said[1:200]}") from None


def check_arrays(arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Raises ArtifactError for an array that is unknown or does not fit the others, or metadata already checked."""
    classes = len(meta["classes"])
    for name, array in arrays.items():
        if not array.size:
            raise ArtifactError(f"array {name[:100]!r} is empty")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"array {name[:100]!r} holds values that are not finite")
        if name in RANKS:
            if array.dtype != np.float32 or array.ndim not in RANKS[name]:
                raise ArtifactError(f"array {name!r} is {array.dtype} {array.shape}, which no prompt is")
        elif name != "words" and not name.startswith("head."):
            raise ArtifactError(f"array {name[:100]!r} is unknown")
    context, pixels, text = (arrays.get(name) for name in ("context", "pixels", "text_features"))
    if context is not None and context.ndim == 3 and len(context) != classes:
        raise ArtifactError(f"there are contexts for {len(context)} classes, but {classes} class names")
    if pixels is not None and (pixels.shape[0] != 3 or pixels.shape[1] != pixels.shape[2]):
        raise ArtifactError(f"array 'pixels' is {pixels.shape}; a frame is (3, H, H)")
    if text is not None and len(text) != classes:
        raise ArtifactError(f"there are text features of {len(text)} classes, but {classes} class names")
    if "words" in arrays:
        words_of(arrays["words"])
    _check_prompt(arrays, meta["parametrization"])
    head = head_of(arrays, classes)
    if (head is None) != (meta["head"] is None):
        raise ArtifactError(f"head is {meta['head']!r}, but the arrays hold {'none' if head is None else 'one'}")
    if head is not None and head.kind == "tip" and not meta["contains"]["training_features"]:
        raise ArtifactError("contains: the head holds training features, and this denies it")


def _check_prompt(arrays: Mapping[str, Array], settings: Mapping[str, Any] | None) -> None:
    """Check that the arrays hold the prompt that the metadata describes, and no other."""
    if settings is None:
        return
    there = {name for name in ("context", "pixels", "words") if name in arrays}
    wanted = PARTS.get(settings["name"], there)
    if there != wanted or "theta" not in arrays:
        missing = sorted((wanted | {"theta"}) - set(arrays)) or sorted(there - wanted)
        raise ArtifactError(f"parametrization is {settings['name']!r}, which does not fit the arrays: {missing[0]}")


def words_of(array: Array) -> str:
    """The template that an array `(n,)` uint8 holds in UTF-8. Raises ArtifactError where it holds none."""
    try:
        if array.dtype != np.uint8 or array.ndim != 1:
            raise ValueError(f"it is {array.dtype} {array.shape}")
        return _template(_printable(array.tobytes().decode()))
    except ValueError as error:
        raise ArtifactError(f"array 'words' is no template in UTF-8 ({error})") from None


def head_of(arrays: Mapping[str, Array], classes: int) -> Head | None:
    """The head in the arrays `head.KIND.FIELD`; None where there is none. Raises ArtifactError as `restore` does."""
    tensors = {tuple(name.split(".", 2)[1:]): array for name, array in arrays.items() if name.startswith("head.")}
    if not tensors:
        return None
    kinds = {key[0] for key in tensors}
    if len(kinds) > 1 or any(len(key) < 2 for key in tensors):
        raise ArtifactError("the arrays 'head.KIND.FIELD' are not of one head")
    return restore(kinds.pop(), {key[1]: array for key, array in tensors.items()}, classes)
