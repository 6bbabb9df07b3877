"""Bodies of requests and answers that more than one dialect uses, and the state of the shelf.

A dialect's own bodies are in its room. Knows nothing of how images are classified.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Body(BaseModel):
    """What a client sends: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reply(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(frozen=True)


class ErrorReply(Reply):
    """Every error of a dialect without a form of its own."""

    error: str
    """One sentence: what came, what is allowed, what to do."""
    code: str


class Version(Reply):
    """One version of an artifact on the shelf."""

    version: str
    """First digits of the SHA-256 of all that it holds."""
    box: str
    model: str
    """URI and identity of the frozen model, `mini:resnet#0123456789ab`."""
    classes: tuple[str, ...]
    template: str
    method: str
    accuracy: float
    """On the test split of the run that made it, a fraction of 1."""
    zero_shot_accuracy: float
    test_images: int
    row_bytes: int
    """What it takes in memory besides its names."""


class RefusedVersion(Reply):
    """A version that was not taken."""

    source: str
    """The folder's name, without its path."""
    reason: str


class Shadowed(Reply):
    """How often a shadow agreed with what was answered."""

    version: str
    images: int
    agreed: int


class Offer(Reply):
    """What the shelf has under one name."""

    name: str
    live: str | None
    """The version that answers `NAME`; None: none could be taken, and `refused` says why."""
    candidate: str | None = None
    """The version that answers a share of the requests for `NAME`."""
    share: float = Field(default=0.0, ge=0, le=1)
    shadows: tuple[Shadowed, ...] = ()
    versions: tuple[Version, ...] = ()
    """Newest last."""
    refused: tuple[RefusedVersion, ...] = ()


class Shelf(Reply):
    """`GET /v1/artifacts`."""

    artifacts: list[Offer]


class ModelCard(Reply):
    """An entry of `GET /v1/models`, in OpenAI's form."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "keyhole"


class ModelList(Reply):
    """`GET /v1/models`, in OpenAI's form."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
