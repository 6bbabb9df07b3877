"""Keyhole's own routes: answers with all that a model gives, for one image or many, and the state of the shelf.

A request's images are the body itself, JSON with base64 or data URIs, or the parts `image` of a form.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile

from engine.images import MAX_BYTES
from serve.answering import Answer, Ask, Refusal
from serve.dialects.asking import DECLARED, ask_each, parsed, tell
from serve.dialects.error_forms import responses
from serve.payload import from_base64, may_be_image, media_type
from serve.refusals import refuse
from serve.routes import Asked
from serve.schema import MOST_IMAGES, Body, ErrorReply, ImageText, Labels, Reply, Shelf, Words, inlined

router = APIRouter(tags=["keyhole"])

Include = Literal["probabilities", "scores", "features"]
FORM = "multipart/form-data"


class Classes(Body):
    """Which classes to choose from, where not the artifact's own."""

    labels: Labels | None = None
    """Others: NAME's tuned context with them, or with `NAME@zero-shot` the frozen model's own template."""
    template: Words | None = None
    """A sentence with one `{}` for the label, with `labels` and `NAME@zero-shot`."""


class Images(Classes):
    """Images in JSON."""

    images: Annotated[tuple[ImageText, ...], Field(min_length=1, max_length=MOST_IMAGES)]
    """Each in base64, or as a data URI."""


class Milliseconds(Reply):
    """Where the time of one answer went."""

    decode: float
    queue: float
    """Waiting for a batch."""
    encode: float
    """Encoding the batch, all of it."""
    batch: int
    """Images of that batch."""


class Answered(Reply):
    """The answer for one image."""

    label: str
    probability: float | None
    """Of this label; null where the model tells labels alone."""
    probabilities: list[float | None] | None = None
    """In the order of `classes`, where asked for."""
    scores: list[float | None] | None = None
    """Logits in the order of `classes`, where asked for and given by the model."""
    features: list[float] | None = None
    """L2-normalised image features, where asked for and given by the model."""
    artifact: str
    version: str
    model: str
    """The frozen model: its URI and identity."""
    milliseconds: Milliseconds


class Failed(Reply):
    """Why there is no answer for one image; the others have theirs."""

    error: str
    code: str


class Answers(Reply):
    """Answers in the order of the images."""

    classes: tuple[str, ...]
    answers: list[Answered | Failed]


BINARY = {"type": "string", "format": "binary"}
_FORM = inlined(Classes)
_FORM["properties"] = {"image": {"type": "array", "items": BINARY, "minItems": 1}, **_FORM["properties"]}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": inlined(Images)},
            FORM: {"schema": {**_FORM, "required": ["image"]}},
            "image/*": {"schema": BINARY},
        },
    }
}


@router.post(
    "/v1/models/{name}/answers",
    operation_id="answer",
    responses={**responses(ErrorReply), **DECLARED},
    openapi_extra=BODY,
)
async def answer(
    name: Annotated[str, Path(max_length=300)],
    request: Request,
    response: Response,
    answering: Asked,
    include: Annotated[tuple[Include, ...], Query(max_length=3)] = ("probabilities",),
) -> Answers:
    """Answer for one image or many. NAME may be `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`.

    An image that cannot be read has its error in its place. Where none is answered, the request itself is refused.
    """
    images, given = await _read(request)
    ask = Ask(artifact=name, labels=given.labels, template=given.template)
    outcomes = await ask_each(answering, images, ask)
    first, *_ = tell(response, outcomes)
    written: dict[int, Milliseconds] = {}  # images of one batch share their timing
    return Answers(classes=first.classes, answers=[_written(outcome, include, written) for outcome in outcomes])


@router.get("/v1/artifacts", operation_id="list_artifacts", responses=responses(ErrorReply, 401))
async def artifacts(answering: Asked) -> Shelf:
    """What is on the shelf: versions, traffic, shadows, and what was refused and why."""
    return Shelf(artifacts=await answering.offers())


def _written(
    outcome: Answer | Refusal, include: tuple[Include, ...], written: dict[int, Milliseconds]
) -> Answered | Failed:
    if isinstance(outcome, Refusal):
        return Failed(error=outcome.message, code=outcome.code)
    rows = {name: getattr(outcome, name) for name in include}
    timing = outcome.timing
    if (milliseconds := written.get(id(timing))) is None:
        milliseconds = written[id(timing)] = Milliseconds(
            decode=timing.decode_s * 1e3, queue=timing.queue_s * 1e3, encode=timing.encode_s * 1e3, batch=timing.batch
        )
    return Answered(
        label=outcome.label,
        probability=outcome.probability,
        artifact=outcome.artifact,
        version=outcome.version,
        model=outcome.model,
        milliseconds=milliseconds,
        **{name: row.tolist() for name, row in rows.items() if row is not None},
    )


async def _read(request: Request) -> tuple[list[bytes | Refusal], Classes]:
    """Images and classes. Raises Refused, RequestValidationError or HTTPException where the body does not fit."""
    kind = media_type(request.headers.get("content-type"))
    if kind == FORM:
        return await _form(request)
    body = await request.body()
    if kind == "application/json":
        given = parsed(Images, body)
        return [from_base64(image) for image in given.images], given
    if not may_be_image(kind):
        raise refuse("unsupported_type", f"the body is {kind[:100]!r}; send an image, JSON or {FORM}")
    return [body], Classes()


async def _form(request: Request) -> tuple[list[bytes | Refusal], Classes]:
    """As `_read`. An image is a file, or text in base64."""
    images: list[bytes | Refusal] = []
    fields: dict[str, list[str]] = {}
    async with request.form(max_files=MOST_IMAGES, max_fields=MOST_IMAGES, max_part_size=2 * MAX_BYTES) as form:
        for key, value in form.multi_items():
            if key == "image":
                images.append(await value.read() if isinstance(value, UploadFile) else from_base64(value))
            elif isinstance(value, UploadFile):
                raise refuse("bad_request", f"the form has a file {key[:100]!r}; name the parts of images 'image'")
            else:
                fields.setdefault(key, []).append(value)
    if not images:
        raise refuse("bad_request", "the form has no part 'image'; send at least one")
    single = {key: values[0] if key == "template" and len(values) == 1 else values for key, values in fields.items()}
    try:
        return images, Classes.model_validate(single)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
