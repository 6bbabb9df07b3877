"""A problem: box + prompt + objective + staged images. Searched vectors in, losses out.

`ProblemSpec` is the description that travels (small, picklable); `Problem` is the live thing, one in each worker.
Knows nothing of budgets, of search methods or of where it runs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from engine.boxes import open_box
from engine.errors import RefusedError
from engine.objectives import make_objective
from engine.phases import phase
from engine.prompts import make_prompt
from engine.protocols import Array, BlackBox, BoxSpec, Outputs, Parametrization, Prompts, Reply, Staged, Work
from engine.random_streams import Purpose, rng
from engine.search_space import Space
from engine.task import Split

CANARY_ROWS = 8
SHARED = ("test",)
"""Splits that do not depend on the few-shot sample: staged once a box."""
TABLE = 2**22
"""Most numbers of a candidate's answer, 16 MB, that leave the process it was made in: of 1,000 classes 4,194 rows.
Losses are of all rows whatever the table holds."""


@dataclass(frozen=True, kw_only=True)
class ProblemSpec:
    """All that a worker needs to build the problem for itself: references, no weights and no images."""

    box: str | BlackBox
    """Its URI; an open box answers in this process alone."""
    classes: tuple[str, ...]
    template: str
    splits: Mapping[str, Split]
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `engine.prompts.make_prompt` besides the box's spec."""
    objective: str = "auto"
    """A name of `engine.objectives`; auto: cross-entropy, that of the top k, or the error rate of labels."""
    device: str = "cpu"
    threads: int | None = 1

    @property
    def uri(self) -> str:
        """Of its box."""
        return self.box if isinstance(self.box, str) else self.box.spec.uri

    def open(self) -> BlackBox:
        """The box, opened anew where it is a URI. Raises KeyholeError as `open_box` does."""
        if not isinstance(self.box, str):
            return self.box
        return open_box(
            self.box, classes=self.classes, template=self.template, device=self.device, threads=self.threads
        )


@dataclass(frozen=True)
class OpenBox:
    """A box that problems of one process share, for one task's classes and template, with what they all read of it."""

    box: BlackBox
    staged: dict[str, tuple[Staged, int]] = field(default_factory=dict)
    """Of the splits in `SHARED`: the images, and how many were encoded for it."""


@dataclass(frozen=True, slots=True)
class CanaryImages:
    """Images of noise, the same everywhere: an `ImageSource` that holds nothing of a task."""

    def __len__(self) -> int:
        return CANARY_ROWS

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB arrays `(64, 64, 3)`."""
        return [rng(0, int(row), Purpose.CANARY).integers(0, 256, (64, 64, 3), np.uint8) for row in rows]


class Problem:
    """The live problem of one process: the box open, images staged when a split is first used.

    Args:
        spec: the description.
        common: the box where it is open already, for the same classes and template; None: it is opened.
    """

    def __init__(self, spec: ProblemSpec, common: OpenBox | None = None) -> None:
        self.spec = spec
        with phase(f"opening {spec.uri}"):
            self._common = common or OpenBox(spec.open())
        self.box = self._common.box
        self.prompt: Parametrization = make_prompt(spec=self.box.spec, **spec.prompt)
        self.space = self._space()
        objective = spec.objective
        if objective == "auto":
            gives = self.box.spec.gives
            objective = "top-k-cross-entropy" if "topk" in gives else "zero-one"
            if gives & {"scores", "features"}:
                objective = "cross-entropy"
        self.objective = make_objective(objective)
        self._staged: dict[str, tuple[Staged, int]] = {}
        self._canary: str | None = None
        refused = self._zero().needs() - self.box.spec.accepts
        if refused:
            raise RefusedError(
                f"box {spec.uri} accepts {sorted(self.box.spec.accepts)}, but this prompt is {sorted(refused)}; "
                f"choose another prompt (keyhole list prompts) or another box"
            )

    def describe(self) -> tuple[BoxSpec, Space]:
        """The box's spec, and the space of the prompt."""
        spec = self.box.spec
        if spec.text is not None:  # the vocabulary stays with the box: it may be 100 MB, and the driver needs none
            spec = replace(spec, text=replace(spec.text, vocabulary=None))
        return spec, self.space

    def _space(self) -> Space:
        """The prompt's, without the templates in words that the box does not know."""
        space = self.prompt.space
        sentences = None if space.known is None else self.prompt.decode(space.known).words
        if space.known is None or sentences is None:
            return space
        rows = [row for row, sentence in enumerate(sentences) if row == 0 or self.box.knows(sentence)]
        return replace(space, known=space.known[rows])

    def _zero(self) -> Prompts:
        """theta = 0."""
        return self.prompt.decode(np.zeros((1, self.space.dim), np.float32))

    def stage(self, split: str) -> tuple[Staged, int]:
        """The images of a split where the box lives, brought there at first use; how many were encoded for it."""
        held = self._common.staged if split in SHARED else self._staged
        if split not in held:
            self.box.work()
            source = self.spec.splits[split].source
            with phase(f"encoding {split} images", len(source)):
                images = self.box.stage(source)
            held[split] = images, self.box.work().image_encodes
        return held[split]

    def evaluate(self, thetas: Array, rows: Array | None = None, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split (None: all); NaN where an answer is not finite."""
        if rows is None:
            rows = np.arange(len(self.spec.splits[split]))
        reply, outputs, labels = self._reply(self.prompt.decode(thetas), rows, split)
        if table:  # all rows, or as many evenly spaced ones as `TABLE` allows
            moved = outputs.image if "image" in outputs.moves else None
            moving = moved if outputs.scores is None else outputs.scores
            step = 1 if moving is None else -(-moving[0].size // TABLE)
            reply = replace(reply, outputs=outputs.every(step) if step > 1 else outputs, labels=labels[::step])
        return replace(reply, bytes=thetas.nbytes + 16 * len(thetas))  # candidates there; a loss and a count back

    def read(self, theta: Array | None, split: str, whole: bool) -> Reply:
        """The answer for one candidate `(d,)`, or for the template itself (None), on a whole split.

        Its outputs are those of all rows with `whole`, else text features alone, where they are given for the prompt.
        theta = 0 need not be the template: with more tokens than it has, its words are repeated.
        """
        prompts = Prompts(count=1) if theta is None else self.prompt.decode(theta[None])
        reply, outputs, _ = self._reply(prompts, np.arange(len(self.spec.splits[split])), split)
        if not whole:
            outputs = Outputs(text=None if "image" in self.space.moves else outputs.text, scale=outputs.scale)
        return replace(reply, outputs=outputs, bytes=16 + (0 if theta is None else theta.nbytes))

    def _reply(self, prompts: Prompts, rows: Array, split: str) -> tuple[Reply, Outputs, Array]:
        """The reply without its table, the whole outputs, and the labels of these rows."""
        images, staged = self.stage(split)
        self.box.work()  # what was done besides (a canary) is not this answer's
        outputs = replace(self.box.answer(prompts, images, rows), moves=self.space.moves)
        labels = self.spec.splits[split].labels[rows]
        losses = np.asarray(self.objective(outputs, labels), np.float64)
        reply = Reply(
            losses=np.where(np.isfinite(losses), losses, np.nan),
            correct=(outputs.predictions() == labels).sum(-1).astype(np.int64).reshape(len(prompts)),
            pairs=len(prompts) * len(rows),
            work=self.box.work(),
            split=split,
            staged=staged,
        )
        return reply, outputs, labels

    def decode(self, theta: Array) -> dict[str, Array]:
        """The prompt of one candidate `(d,)` as an artifact keeps it; nothing is asked for it."""
        prompts = self.prompt.decode(theta[None])
        kept = {name: getattr(prompts, name)[0] for name in ("context", "pixels") if getattr(prompts, name) is not None}
        if prompts.words is not None:
            kept["words"] = np.frombuffer(prompts.words[0].encode(), np.uint8)
        return kept

    def fingerprint(self) -> dict[str, Any]:
        """What must agree between workers for their answers to mix: device, builds, and the bits of a canary.

        The canary is theta = 0 on images made for it, computed once a process when it opens: no image of the task is
        sent, and it is on no run's account.
        """
        if self._canary is None:
            outputs = self.box.answer(self._zero(), self.box.stage(CanaryImages()), np.arange(CANARY_ROWS))
            told = outputs.topk or [outputs.labels if outputs.labels is not None else outputs.logits()]
            self._canary = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in told)).hexdigest()
        return {
            "device": self.spec.device,
            "cpu": cpu_model(),
            "numpy": np.__version__,
            "torch": installed_version("torch"),
            "canary": self._canary[:16],
        }


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """What this machine calls its processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def chunks_of(thetas: Array, chunk: int) -> list[Array]:
    """Candidates `(P, d)` in parts of `chunk`, which are evaluated together."""
    return [thetas[start : start + chunk] for start in range(0, len(thetas), chunk)]


def join(replies: list[Reply]) -> Reply:
    """One reply for consecutive chunks of candidates, in their order."""
    work = Work()
    for reply in replies:
        work = work + reply.work
    return Reply(
        losses=np.concatenate([reply.losses for reply in replies]),
        correct=np.concatenate([reply.correct for reply in replies]),
        pairs=sum(reply.pairs for reply in replies),
        work=work,
        split=replies[0].split,
        staged=replies[0].staged,
        outputs=_join_outputs(replies),
        labels=replies[0].labels,
        retries=sum(reply.retries for reply in replies),
        duplicates=sum(reply.duplicates for reply in replies),
        bytes=sum(reply.bytes for reply in replies),
    )


def _join_outputs(replies: list[Reply]) -> Outputs | None:
    parts = [reply.outputs for reply in replies if reply.outputs is not None]
    if len(parts) < len(replies):
        return None

    def stack(arrays: list[Array | None], moving: bool = True) -> Array | None:
        present = [array for array in arrays if array is not None]
        if not present:
            return None
        return np.concatenate(present) if moving else present[0]

    moves = parts[0].moves
    tops = [part.topk for part in parts if part.topk is not None]
    return Outputs(
        labels=stack([part.labels for part in parts]),
        topk=(np.concatenate([t[0] for t in tops]), np.concatenate([t[1] for t in tops])) if tops else None,
        scores=stack([part.scores for part in parts]),
        text=stack([part.text for part in parts], "text" in moves),
        image=stack([part.image for part in parts], "image" in moves),
        scale=parts[0].scale,
        moves=moves,
    )
