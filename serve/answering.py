"""What every dialect asks and what it gets: the one interface between HTTP and the models.

A dialect turns its request into encoded images and `Ask`s, awaits `Answering.ask`, and writes the answers in its own
form. One answer comes back for every image and every ask; what cannot be answered is a `Refusal` in its place, so that
one bad image fails alone. Nothing here raises for what a client sent.

Letters in shapes: C classes, E joint embedding width.
Knows nothing of HTTP or Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from engine.protocols import Array
from serve.schema import Offer, Version

Code = Literal[
    "bad_image", "unsupported_type", "too_large", "unknown_model", "bad_request", "overloaded", "unavailable"
]
"""Why something is not answered; `refusals.STATUS` has the HTTP status of each."""

LATEST, ZERO_SHOT = "latest", "zero-shot"
"""What may stand behind the @ of a name besides a version: the newest version; the bare template of the artifact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One question about every image of a request."""

    artifact: str
    """`NAME` (what traffic is led to), `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    labels: tuple[str, ...] | None = None
    """Other classes than the artifact's: its tuned context with these names, or with `NAME@zero-shot` the bare
    template with them. At least one, all different. None: the artifact's own classes."""
    template: str | None = None
    """A sentence with one `{}` in place of the template, with `labels` and `NAME@zero-shot` only. A template of `{}`
    makes the labels whole sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Where the time of one answer went, in seconds."""

    decode_s: float = 0.0
    """Decoding and preprocessing the image."""
    queue_s: float = 0.0
    """Waiting for a batch."""
    encode_s: float = 0.0
    """Encoding the batch, all of it."""
    batch: int = 1
    """Images of that batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer for one image to one ask."""

    label: str
    """The best class."""
    probability: float
    """Of this class; NaN where the box gives labels alone."""
    classes: tuple[str, ...]
    """C names."""
    probabilities: Array
    """`(C,)` float64, in the order of `classes`: what `Classifier.predict` returns."""
    scores: Array | None
    """`(C,)` float32 logits; None where the box gives the top k or labels alone."""
    features: Array | None
    """`(E,)` float32 L2-normalised image features, the artifact's frame included; None where the box gives none."""
    artifact: str
    """Name on the shelf."""
    version: str
    """Of the artifact that answered."""
    model: str
    """The box's URI and a hash of its identity: `mini:resnet#0123456789ab`."""
    timing: Timing = field(default_factory=Timing)

    def best(self, k: int | None = None) -> list[tuple[str, float]]:
        """The k most probable classes (None: all) with their probabilities, `label` first; ties in their order."""
        behind = [
            name != self.label for name in self.classes
        ]  # where there are labels alone, all probabilities are NaN
        order = np.lexsort((-self.probabilities, behind))[:k]
        return [(self.classes[row], float(self.probabilities[row])) for row in order]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why there is no answer."""

    code: Code
    message: str
    """One sentence for the client: what came, what is allowed, what to do. No internals."""
    retry_after_s: int | None = None
    """When to try again, for `overloaded` and `unavailable`."""


class Answering(Protocol):
    """Whoever answers: a replica in this process, or a gateway that asks replicas elsewhere."""

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """Answers for n images and m asks: n lists of m. An image is decoded once and encoded once for all asks.

        Args:
            images: Encoded images, as they came.
            asks: At least one.
        """
        ...

    async def about(self, artifact: str) -> Version | Refusal:
        """The version that answers `artifact` now; where traffic is split, the one that is drawn for this request."""
        ...

    async def offers(self) -> list[Offer]:
        """What is on the shelf, by name."""
        ...

    async def ready(self, artifact: str | None = None) -> Refusal | None:
        """Encode an image, of the box of `artifact` (None: of every box); None where that works, else why not."""
        ...
