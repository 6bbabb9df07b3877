"""Bodies of requests and answers that more than one dialect uses, and the state of the shelf.

A dialect's own bodies are in its room. Knows nothing of how images are classified.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MOST_IMAGES = 1_000
"""Images of one request."""
Words = Annotated[str, Field(min_length=1, max_length=1_000)]
"""A class name or a sentence."""
MOST_LABELS = 1_000
"""Class names or sentences among which one answer may choose."""
Labels = Annotated[tuple[Words, ...], Field(min_length=1, max_length=MOST_LABELS)]


class Body(BaseModel):
    """What a client sends: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reply(BaseModel):
    """What a client gets. A number that there is none of (NaN) is sent as null."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


def inlined(body: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body that a route reads by itself, without references: OpenAPI would not resolve them."""
    schema = body.model_json_schema()
    parts = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).removeprefix("#/$defs/")
            return resolved(parts[name]) if name else {key: resolved(value) for key, value in node.items()}
        return [resolved(item) for item in node] if isinstance(node, list) else node

    return resolved(schema)


# ---------------------------------------------------------------------------------------------------------------------
# Errors, by dialect (dialects/error_forms.py)


class ErrorReply(Reply):
    """Every error of our own routes and of Hugging Face's, whose clients read `error`."""

    error: str
    """One sentence: what came, what is allowed, what to do."""
    code: str


class ProtocolError(Reply):
    """Every error of the Open Inference Protocol."""

    error: str


class OpenAIError(Reply):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None = None
    code: str


class OpenAIErrorReply(Reply):
    """Every error in OpenAI's form."""

    error: OpenAIError


# ---------------------------------------------------------------------------------------------------------------------
# The shelf


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
