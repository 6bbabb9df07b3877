"""A problem: box + prompt + objective + staged images. Searched vectors in, losses out.

`ProblemSpec` is the description that travels (small, picklable); `Problem` is the live thing, one in each worker.
Knows nothing of budgets, of search methods or of where it runs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from engine.boxes import open_box
from engine.core import Array, BoxSpec, Outputs, Parametrization, Prompts, Reply, Split, Staged, Work
from engine.errors import RefusedError
from engine.objectives import cross_entropy, make_objective
from engine.prompts import make_prompt

CANARY_ROWS = 8
TABLE = 2**22
"""Most numbers of a candidate's answer, 16 MB, that leave the process it was made in: of 1,000 classes 4,194 rows.
Losses are of all rows whatever the table holds."""


@dataclass(frozen=True, kw_only=True)
class ProblemSpec:
    """All that a worker needs to build the problem for itself: references, no weights and no images."""

    box: str
    classes: tuple[str, ...]
    template: str
    splits: Mapping[str, Split]
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of `engine.prompts.make_prompt` besides the box's spec."""
    objective: str = "auto"
    """A name of `engine.objectives`; auto: cross-entropy, that of the top k, or the error rate of labels."""
    device: str = "cpu"
    threads: int | None = 1


class Problem:
    """The live problem of one process: the box open, images staged when a split is first used."""

    def __init__(self, spec: ProblemSpec) -> None:
        self.spec = spec
        self.box = open_box(
            spec.box, classes=spec.classes, template=spec.template, device=spec.device, threads=spec.threads
        )
        self.prompt: Parametrization = make_prompt(spec=self.box.spec, **spec.prompt)
        objective = spec.objective
        if objective == "auto":
            gives = self.box.spec.gives
            objective = "top-k-cross-entropy" if "topk" in gives else "zero-one"
            if gives & {"scores", "features"}:
                objective = "cross-entropy"
        self.objective = make_objective(objective)
        self._staged: dict[str, tuple[Staged, int]] = {}
        probe = self.prompt.decode(np.zeros((1, self.prompt.dim), np.float32))
        refused = probe.needs() - self.box.spec.accepts
        if refused:
            raise RefusedError(
                f"box {spec.box} accepts {sorted(self.box.spec.accepts)}, but this prompt is {sorted(refused)}; "
                f"choose another prompt (keyhole list prompts) or another box"
            )

    def describe(self) -> tuple[BoxSpec, int, bool]:
        """The box's spec, d, and whether validation answers follow from text features that came back anyway."""
        spec = self.box.spec
        if spec.text is not None:  # the vocabulary stays with the box: it may be 100 MB, and the driver needs none
            spec = replace(spec, text=replace(spec.text, vocabulary=None))
        return spec, self.prompt.dim, "features" in spec.gives and not self._moves_images()

    def _moves_images(self) -> bool:
        return bool(self.prompt.decode(np.zeros((1, self.prompt.dim), np.float32)).needs() & {"pixels", "tokens"})

    def staged(self, split: str) -> Staged:
        """The images of a split where the box lives, brought there at first use."""
        return self._stage(split)[0]

    def _stage(self, split: str) -> tuple[Staged, int]:
        if split not in self._staged:
            self.box.work()
            images = self.box.stage(self.spec.splits[split].source)
            self._staged[split] = images, self.box.work().image_encodes
        return self._staged[split]

    def answer(self, prompts: Prompts, rows: Array, split: str) -> Outputs:
        """The box's own outputs."""
        return self.box.answer(prompts, self.staged(split), rows)

    def evaluate(self, thetas: Array, rows: Array | None = None, split: str = "train", table: bool = False) -> Reply:
        """Losses of `(P, d)` candidates on these rows of a split (None: all); NaN where an answer is not finite."""
        reply = self._reply(self.prompt.decode(thetas), rows, split, table)
        return replace(reply, bytes=thetas.nbytes + 16 * len(thetas))  # candidates there; a loss and a count back

    def beside_template(self, theta: Array, split: str = "test") -> Reply:
        """The template itself and then a candidate on a whole split; the template alone where they are the same.

        theta = 0 need not be the template: with more tokens than it has, its words are repeated.
        """
        prompts, spec = self.prompt.decode(theta[None]), self.box.spec.text
        same = prompts.context is None or (
            spec is not None
            and prompts.context.shape[-2:] == spec.context.shape
            and bool((prompts.context == spec.context).all())
        )
        both = [Prompts(count=1)] + [prompts] * bool(theta.any() or not same)
        return join([self._reply(each, None, split, False) for each in both])

    def _reply(self, prompts: Prompts, rows: Array | None, split: str, table: bool) -> Reply:
        if rows is None:
            rows = np.arange(len(self.spec.splits[split]))
        staged = self._stage(split)[1]
        self.box.work()  # what was done besides (a canary, a head's features) is not this answer's
        outputs = self.answer(prompts, rows, split)
        labels = self.spec.splits[split].labels[rows]
        losses = np.asarray(self.objective(outputs, labels), np.float64)
        return Reply(
            losses=np.where(np.isfinite(losses), losses, np.nan),
            correct=(outputs.predictions() == labels).sum(-1).astype(np.int64).reshape(len(prompts)),
            pairs=len(prompts) * len(rows),
            work=self.box.work(),
            split=split,
            staged=staged,
            **(self._table(outputs, labels) if table else {}),
        )

    def _table(self, outputs: Outputs, labels: Array) -> dict[str, Any]:
        """What a search is told besides losses: the answers on so many evenly spaced rows as `TABLE` allows."""
        moving = outputs.scores if outputs.scores is not None else outputs.image if self._moves_images() else None
        step = 1 if moving is None else -(-moving[0].size // TABLE)
        return {"outputs": outputs.every(step) if step > 1 else outputs, "labels": labels[::step]}

    def cross_entropy(self, theta: Array, split: str = "train") -> float | None:
        """Plain cross-entropy of one candidate on a whole split; None where the box gives no scores."""
        rows = np.arange(len(self.spec.splits[split]))
        outputs = self.answer(self.prompt.decode(theta[None]), rows, split)
        if outputs.scores is None and outputs.text is None:
            return None
        return float(cross_entropy(outputs, self.spec.splits[split].labels)[0])

    def features(self, split: str, theta: Array) -> tuple[Array, Array, float]:
        """What heads are trained on: image `(n, E)` and text `(C, E)` features under a candidate, and the scale.

        Raises RefusedError where features are not given.
        """
        prompts = self.prompt.decode(theta[None])
        outputs = self.answer(prompts, np.arange(len(self.spec.splits[split])), split)
        if outputs.image is None or outputs.text is None:
            raise RefusedError(
                f"a head needs features, and box {self.spec.box} gives {sorted(self.box.spec.gives)}; "
                "use a prompt method or a box that gives features"
            )
        return outputs.image[0], outputs.text[0], outputs.scale

    def scores(self, split: str, theta: Array) -> Array:
        """`(n, C)` scores under a candidate. Raises RefusedError where they are not given."""
        return self.answer(self.prompt.decode(theta[None]), np.arange(len(self.spec.splits[split])), split).logits()[0]

    def pool(self) -> Array:
        """`(T, d)`: the whole templates of a prompt in words, without those that the box says it does not know.

        Raises RefusedError for a prompt of another kind.
        """
        found = getattr(self.prompt, "pool", None)
        if found is None:
            raise RefusedError(f"prompt {self.spec.prompt.get('name')!r} has no templates; use the prompt words")
        box: Any = self.box
        while hasattr(box, "inner"):
            box = box.inner
        tower = getattr(box, "text_tower", None)
        if tower is None:
            return found
        sentences = self.prompt.decode(found).words or ()
        return found[[row for row, sentence in enumerate(sentences) if row == 0 or tower.knows(sentence)]]

    def class_features(self, thetas: Array) -> Array:
        """`(P, C, E)` text features of these candidates."""
        text = self.answer(self.prompt.decode(thetas), np.arange(1), "train").text
        if text is None:
            raise RefusedError(f"a mixture needs features, and box {self.spec.box} gives {sorted(self.box.spec.gives)}")
        return text

    def decoded(self, theta: Array) -> dict[str, Array]:
        """What an artifact keeps of a candidate: its prompt and, where only text moves, its classifier rows."""
        prompts = self.prompt.decode(theta[None])
        kept = {name: getattr(prompts, name)[0] for name in ("context", "pixels") if getattr(prompts, name) is not None}
        if prompts.words is not None:
            kept["words"] = np.frombuffer(prompts.words[0].encode(), np.uint8)
        if "features" in self.box.spec.gives and not self._moves_images():
            text = self.answer(prompts, np.arange(1), "train").text
            assert text is not None
            kept["text_features"] = text[0]
        return kept

    def fingerprint(self) -> dict[str, Any]:
        """What must agree between workers for their answers to mix: device, builds, and the bits of a canary."""
        rows = np.arange(min(CANARY_ROWS, len(self.spec.splits["train"])))
        reply = self.evaluate(np.zeros((1, self.prompt.dim), np.float32), rows)
        return {
            "device": self.spec.device,
            "cpu": _cpu_model(),
            "numpy": np.__version__,
            "torch": _installed("torch"),
            "canary": hashlib.sha256(reply.losses.tobytes()).hexdigest()[:16],
        }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


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

    def stack(arrays: list[Array | None]) -> Array | None:
        present = [array for array in arrays if array is not None]
        if not present:
            return None
        own = all(len(array) == len(reply.losses) for array, reply in zip(present, replies, strict=True))
        if len(present) > 1 and all(len(array) == 1 and np.array_equal(array, present[0]) for array in present):
            own = False  # chunks of one candidate, whose shapes do not tell what all of them share
        return np.concatenate(present) if own else present[0]  # an axis of 1 is shared by all candidates

    tops = [part.topk for part in parts if part.topk is not None]
    return Outputs(
        labels=stack([part.labels for part in parts]),
        topk=(np.concatenate([t[0] for t in tops]), np.concatenate([t[1] for t in tops])) if tops else None,
        scores=stack([part.scores for part in parts]),
        text=stack([part.text for part in parts]),
        image=stack([part.image for part in parts]),
        scale=parts[0].scale,
    )
