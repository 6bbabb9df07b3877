"""Open Inference Protocol v2 (KServe, Triton): health, metadata and inference over HTTP and JSON.

One input, `image`: BYTES `[n]`, each an encoded image in base64. Outputs stand in `OUTPUTS`; `classes` gives the order
of the columns.

The protocol has one error for a whole request and no place for one of a row. So **a bad image of a batch fails alone**
in two outputs: its row of `error` holds the sentence (of all others an empty string), its label is empty, and its
numbers are null, which NumPy clients read as NaN. A request that asks for outputs without `error` could not tell, and
is refused as a whole; so is one of which no image is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from pydantic import Field

from engine.evaluators.problem import installed_version
from engine.protocols import Array
from serve.answering import Answer, Answering, Ask, Refusal
from serve.dialects.asking import DECLARED, ask_each, slowest, tell
from serve.dialects.error_forms import responses
from serve.payload import from_base64
from serve.refusals import Refused, refuse
from serve.routes import Asked
from serve.schema import MOST_IMAGES, Body, ProtocolError, Reply, Version

router = APIRouter(prefix="/v2", tags=["open inference protocol"])

Name = Annotated[str, Path(max_length=300)]
Scalar = str | bool | int | float
Parameters = Annotated[dict[str, Scalar | None], Field(max_length=100)]
OUTPUTS = {
    "label": "BYTES",
    "probability": "FP64",
    "probabilities": "FP64",
    "classes": "BYTES",
    "error": "BYTES",
    "scores": "FP32",
    "features": "FP32",
}
"""Outputs and their types. `label`, `probability` and `error` are `[n]`, `classes` `[C]`, others `[n, C or E]`."""
DEFAULT = ("label", "probability", "probabilities", "classes", "error")


class Live(Reply):
    live: bool


class Ready(Reply):
    ready: bool


class Server(Reply):
    """`GET /v2`."""

    name: Literal["keyhole"] = "keyhole"
    version: str
    extensions: list[str] = []


class ModelReady(Reply):
    name: str
    ready: bool


class Tensor(Reply):
    """What goes in or out; -1 is any length."""

    name: str
    datatype: str
    shape: list[int]


class Metadata(Reply):
    """Of one model."""

    name: str
    versions: list[str]
    platform: Literal["keyhole"] = "keyhole"
    inputs: list[Tensor]
    outputs: list[Tensor]


class Input(Body):
    """The images."""

    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: Annotated[tuple[int, ...], Field(min_length=1, max_length=2)]
    """`[n]` or `[n, 1]`."""
    data: Annotated[tuple[str | tuple[str], ...], Field(min_length=1, max_length=MOST_IMAGES)]
    """n images, each in base64 or as a data URI; also as rows of one."""
    parameters: Parameters | None = None


class Output(Body):
    """An output that is asked for."""

    name: Literal["label", "probability", "probabilities", "classes", "error", "scores", "features"]
    parameters: Parameters | None = None


class Inference(Body):
    """What is asked. Parameters have no effect."""

    id: Annotated[str, Field(max_length=300)] | None = None
    inputs: Annotated[tuple[Input, ...], Field(min_length=1, max_length=1)]
    outputs: Annotated[tuple[Output, ...], Field(max_length=len(OUTPUTS))] | None = None
    """None: all but scores and features."""
    parameters: Parameters | None = None


class OutputTensor(Tensor):
    """An output, flat in row-major order."""

    data: list[str] | list[float | None]


class Inferred(Reply):
    """The answer."""

    id: str | None = None
    model_name: str
    model_version: str
    parameters: dict[str, str | float]
    """`model`: the frozen model and its identity; `decode_s`, `queue_s`, `encode_s`: of the slowest image."""
    outputs: list[OutputTensor]


@router.get("", operation_id="server_metadata", responses=responses(ProtocolError, 401))
async def server() -> Server:
    """The server's name and version."""
    return Server(version=installed_version("keyhole") or "unknown")


@router.get("/health/live", operation_id="live")
async def live() -> Live:
    """Whether the process answers."""
    return Live(live=True)


@router.get("/health/ready", operation_id="ready", responses=responses(ProtocolError, 503))
async def ready(answering: Asked) -> Ready:
    """Whether images are encoded: one is, of every model."""
    if (refusal := await answering.ready()) is not None:
        raise Refused(refusal)
    return Ready(ready=True)


@router.get("/models/{name}", operation_id="model_metadata", responses=responses(ProtocolError, 401, 404, 422))
async def metadata(name: Name, answering: Asked) -> Metadata:
    """Inputs, outputs and versions of a model."""
    about = await _about(answering, name)
    offers = {offer.name: offer for offer in await answering.offers()}
    offer = offers.get(name.partition("@")[0])
    versions = [about] if offer is None or "@" in name else offer.versions
    return _metadata(name, about, [version.version for version in versions])


@router.get(
    "/models/{name}/versions/{version}",
    operation_id="version_metadata",
    responses=responses(ProtocolError, 401, 404, 422),
)
async def version_metadata(name: Name, version: Name, answering: Asked) -> Metadata:
    """As `model_metadata`, of one version."""
    about = await _about(answering, f"{name}@{version}")
    return _metadata(name, about, [about.version])


@router.get("/models/{name}/ready", operation_id="model_ready", responses=responses(ProtocolError, 401, 404, 422, 503))
async def model_ready(name: Name, answering: Asked) -> ModelReady:
    """Whether images are encoded for this model: one is."""
    if (refusal := await answering.ready(name)) is not None:
        raise Refused(refusal)
    return ModelReady(name=name, ready=True)


@router.get(
    "/models/{name}/versions/{version}/ready",
    operation_id="version_ready",
    responses=responses(ProtocolError, 401, 404, 422, 503),
)
async def version_ready(name: Name, version: Name, answering: Asked) -> ModelReady:
    """As `model_ready`, of one version."""
    return (await model_ready(f"{name}@{version}", answering)).model_copy(update={"name": name})


@router.post("/models/{name}/infer", operation_id="infer", responses={**responses(ProtocolError), **DECLARED})
async def infer(name: Name, given: Inference, response: Response, answering: Asked) -> Inferred:
    """Classify images. The name may be `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    return await _infer(name, name, given, response, answering)


@router.post(
    "/models/{name}/versions/{version}/infer",
    operation_id="version_infer",
    responses={**responses(ProtocolError), **DECLARED},
)
async def version_infer(name: Name, version: Name, given: Inference, response: Response, answering: Asked) -> Inferred:
    """As `infer`, of one version, `latest` or `zero-shot`."""
    return await _infer(name, f"{name}@{version}", given, response, answering)


async def _about(answering: Answering, artifact: str) -> Version:
    if isinstance(found := await answering.about(artifact), Refusal):
        raise Refused(found)
    return found


def _metadata(name: str, about: Version, versions: list[str]) -> Metadata:
    count = len(about.classes)
    widths = {"probabilities": [-1, count], "scores": [-1, count], "features": [-1, -1], "classes": [count]}
    return Metadata(
        name=name,
        versions=versions,
        inputs=[Tensor(name="image", datatype="BYTES", shape=[-1])],
        outputs=[Tensor(name=key, datatype=kind, shape=widths.get(key, [-1])) for key, kind in OUTPUTS.items()],
    )


async def _infer(name: str, artifact: str, given: Inference, response: Response, answering: Answering) -> Inferred:
    """The answer of `NAME` or `NAME@VERSION`. Raises Refused."""
    (only,) = given.inputs
    images = [from_base64(item if isinstance(item, str) else item[0]) for item in only.data]
    if only.shape not in ((len(images),), (len(images), 1)):
        raise refuse("bad_request", f"shape {list(only.shape)} does not fit {len(images)} images; send [{len(images)}]")
    wanted = DEFAULT if given.outputs is None else tuple(output.name for output in given.outputs)
    outcomes = await ask_each(answering, images, Ask(artifact=artifact))
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refusals and "error" not in wanted:
        raise Refused(refusals[0])
    first, *_ = answers = tell(response, outcomes)
    return Inferred(
        id=given.id,
        model_name=name,
        model_version=first.version,
        parameters={"model": first.model, **{f"{name}_s": span for name, span in slowest(answers).items()}},
        outputs=[_output(key, outcomes, first) for key in dict.fromkeys(wanted)],
    )


def _output(key: str, outcomes: Sequence[Answer | Refusal], first: Answer) -> OutputTensor:
    """One output of all images; null in the rows of those that are not answered. Raises Refused where it has none."""
    count, data = len(outcomes), []
    if key == "classes":
        return OutputTensor(name=key, datatype=OUTPUTS[key], shape=[len(first.classes)], data=list(first.classes))
    if key == "error":
        data = [outcome.message if isinstance(outcome, Refusal) else "" for outcome in outcomes]
    elif key == "label":
        data = ["" if isinstance(outcome, Refusal) else outcome.label for outcome in outcomes]
    elif key == "probability":
        data = [None if isinstance(outcome, Refusal) else outcome.probability for outcome in outcomes]
    if data:
        return OutputTensor(name=key, datatype=OUTPUTS[key], shape=[count], data=data)
    rows = [None if isinstance(outcome, Refusal) else _row(outcome, key) for outcome in outcomes]
    width = next(len(row) for row in rows if row is not None)
    flat = [value for row in rows for value in ([None] * width if row is None else row.tolist())]
    return OutputTensor(name=key, datatype=OUTPUTS[key], shape=[count, width], data=flat)


def _row(answer: Answer, key: str) -> Array:
    row = {"probabilities": answer.probabilities, "scores": answer.scores, "features": answer.features}[key]
    if row is None:
        raise refuse("bad_request", f"{answer.artifact} gives no {key}; ask for others of {', '.join(OUTPUTS)}")
    return row
