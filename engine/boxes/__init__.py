"""Box URIs: `scheme:rest?option=value` -> an open box. Schemes are a table of strings, resolved when first used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name

import numpy as np
from scipy.special import log_softmax

from engine.boxes.degraded import OPTIONS, open_imperfect, take_options
from engine.errors import RecipeError, TaskError, nearest, shown
from engine.parsing import parse_uri
from engine.protocols import GIVES, BlackBox, Outputs
from engine.threads import limited

SCHEMES: dict[str, str] = {
    "open_clip": "engine.boxes.clip.model_names:open_named",
    "hf-hub": "engine.boxes.clip.model_names:open_hub",
    "local-dir": "engine.boxes.clip.model_names:open_folder",
    "mini": "miniature:open_box",
    "toy": "engine.boxes.toy:open_box",
}
"""scheme -> `module:function`, called with a `BoxRequest`, returns a `BlackBox`."""

FORMS: dict[str, str] = {
    "mini:NAME": "a toy model that comes with Keyhole",
    "open_clip:MODEL,WEIGHTS": "a model of open_clip; WEIGHTS: a published tag, a file or `random`",
    "hf-hub:ORG/REPO": "an open_clip model on the Hugging Face hub",
    "local-dir:PATH": "an open_clip model in a folder: open_clip_config.json and weights",
    "toy:": "no model, a few matrices that answer at once: to try Keyhole itself",
}
"""How each scheme is written, and what it opens."""

WITHOUT_TORCH = frozenset({"toy"})
"""Schemes whose boxes do not compute with torch: it is not imported for them."""

_RICHEST_FIRST = ("features", "scores", "topk", "labels")
_TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRequest:
    """What a scheme's opener receives: the URI in parts, the task's words, and the device."""

    uri: str
    """As the user wrote it, for messages and for `BoxSpec.uri`."""
    rest: str = ""
    """What stands between the scheme and the options."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The scheme's own options; those that every box knows have been taken out."""
    classes: tuple[str, ...]
    """C class names."""
    template: str
    """A sentence with one `{}` for the class name."""
    gives: frozenset[str] | None = None
    """What the box may give; None: all that it can."""
    device: str = "cpu"
    """Where a local model computes, in torch's words."""

    def allow(self, *known: str) -> None:
        """Raises RecipeError where the options have a name that is not among `known`."""
        allowed = [*known, "gives", *OPTIONS]
        for name in self.options:
            if name not in known:
                raise RecipeError(
                    f"box {self.uri!r}: no option {name!r}{nearest(name, allowed)}; "
                    f"its options are {', '.join(allowed)}"
                )


def open_box(
    uri: str, *, classes: Sequence[str], template: str, device: str = "cpu", threads: int | None = 1
) -> BlackBox:
    """Open a frozen model for one task's classes and template.

    Args:
        uri: `scheme:rest?option=value&...`. `gives=scores` (comma separated) narrows what the box gives; `noise`,
            `round`, `topk` and `jpeg` degrade it (degraded.py); other options are the scheme's own.
        classes: The task's class names, all different.
        template: A sentence with one `{}` for the class name.
        device: Where a local model computes, in torch's words.
        threads: Threads for opening it; None leaves them alone.

    Raises:
        RecipeError: The URI or one of its options is unknown or malformed.
        TaskError: The classes or the template cannot be used.
        BoxError: The weights could not be fetched.
    """
    scheme, rest, options = parse_uri(uri, "box")
    if ":" not in uri or scheme not in SCHEMES:
        raise RecipeError(
            f"box {uri!r}: no scheme {scheme!r}{nearest(scheme, SCHEMES)}; a box is named scheme:name, with a scheme "
            f"of {', '.join(SCHEMES)}"
        )
    if not classes or len(set(classes)) != len(classes) or not all(name.strip() for name in classes):
        raise TaskError(f"classes {list(classes)[:8]}: at least one, none empty, all different; rename them")
    if template.count("{}") != 1:
        raise TaskError(f"template {template!r}: it needs exactly one {{}} for the class name")
    gives = _narrowed(uri, options.pop("gives", None))
    wrong = take_options(uri, options)
    if scheme not in WITHOUT_TORCH:
        import torch

        # cuDNN defaults to TF32, whose error is larger than the effect of a probe.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    _check_device(device, torch=scheme not in WITHOUT_TORCH)
    opener = resolve_name(SCHEMES[scheme])
    request = BoxRequest(uri=uri, rest=rest, options=options, classes=tuple(classes), template=template, device=device)

    def opened(gives: frozenset[str] | None) -> BlackBox:
        return opener(replace(request, gives=gives))

    with limited(threads):
        return opened(gives) if wrong is None else open_imperfect(uri, wrong, gives, opened)


def _check_device(device: str, *, torch: bool) -> None:
    """Raise RecipeError, naming the devices of this process, where `device` is none of them."""
    there = ["cpu"]
    if torch:
        from torch import cuda

        there += [f"cuda:{number}" for number in range(cuda.device_count())]
    if device not in there and not (device == "cuda" and len(there) > 1):
        seen = "" if len(there) > 1 or not torch else " (torch sees no GPU)"
        raise RecipeError(f"device={shown(device)} is not there: this process has {', '.join(there)}{seen}")


def _narrowed(uri: str, value: str | None) -> frozenset[str] | None:
    """The set in `gives=`; None where the option is missing."""
    if value is None:
        return None
    kinds = value.split(",")
    for kind in kinds:
        if kind not in GIVES:
            raise RecipeError(f"box {uri!r}: gives={kind}{nearest(kind, GIVES)}; a box gives {', '.join(GIVES)}")
    return frozenset(kinds)


def keep_only(features: Outputs, gives: frozenset[str]) -> Outputs:
    """Reduce an answer in features to the richest of the kinds that the box gives.

    Args:
        features: `text` (P or 1, C, E) and `image` (P or 1, B, E), as `Outputs` has them.
        gives: At least one of labels, topk, scores, features.
    """
    kind = next(kind for kind in _RICHEST_FIRST if kind in gives)
    if kind == "features":
        return features
    logits = features.logits()
    if kind == "scores":
        return Outputs(scores=logits)
    if kind == "labels":
        return Outputs(labels=logits.argmax(-1))
    told = log_softmax(logits.astype(np.float64), axis=-1)
    best = np.argsort(-told, axis=-1, kind="stable")[..., :_TOP]
    return Outputs(topk=(best, np.take_along_axis(told, best, -1).astype(np.float32)))
