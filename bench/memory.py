"""`keyhole bench memory`: what a table search holds and how long its rounds take, at the size of a 16-shot ImageNet.

The box is synthetic, since only shapes matter: random image features, and a fixed random network from the context to
the class features. The rest is what a run goes through, problem, loop, search and checkpoints, in one process on
one thread; `searching_s` includes the writing.

Letters in shapes: as in engine.protocols. Knows nothing of real models.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.entry import Answering, Parser, enter
from engine import search
from engine.boxes import SCHEMES, BoxRequest, keep_only
from engine.checkpoint import Checkpoint
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.serial import Serial
from engine.ledger import Ledger
from engine.protocols import Array, BoxSpec, Outputs, Prompts, Split, TextSpec, Work
from engine.session import Session
from engine.tuning_loop import steps

TOKENS, HIDDEN, SCALE, NOISE = 4, 512, 100.0, 6.0
CHECKPOINT_S = 5.0
"""Seconds between checkpoints, a recipe's default."""


@dataclass(frozen=True)
class Unseen:
    """Images that exist as labels only."""

    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


class SyntheticBox:
    """A `BlackBox` of joint width E, whose context is `TOKENS` vectors as wide: `synthetic:E`."""

    def __init__(self, request: BoxRequest) -> None:
        width, random = int(request.rest), np.random.default_rng(0)
        shapes = ((TOKENS * width, HIDDEN), (len(request.classes), HIDDEN), (HIDDEN, width), (TOKENS, width))
        self._into, self._codes, self._out, self._context = (random.standard_normal(s, np.float32) for s in shapes)
        self._into *= np.float32(0.5 / np.sqrt(TOKENS * width))
        self.spec = BoxSpec(
            uri=request.uri, gives=request.gives or frozenset({"features"}), accepts=frozenset({"context"}),
            classes=request.classes, image_size=1, template=request.template,
            text=TextSpec(context=self._context, sigma=1.0),
        )  # fmt: skip

    def stage(self, source: Any) -> Array:
        """`(N, E)`: noise around what the network makes of their classes one step away from the template."""
        random = np.random.default_rng(1)
        away = self._text(self._context + random.standard_normal(self._context.shape, np.float32))
        noise = random.standard_normal((len(source), away.shape[1]), np.float32) / np.float32(np.sqrt(away.shape[1]))
        return _unit(away[source.labels] + np.float32(NOISE) * noise)

    def answer(self, prompts: Prompts, staged: Array, rows: Array) -> Outputs:
        """Features, or scores."""
        contexts = [self._context] * len(prompts) if prompts.context is None else prompts.context
        outputs = Outputs(text=np.stack([self._text(c) for c in contexts]), image=staged[rows][None], scale=SCALE)
        return keep_only(outputs, self.spec.gives)

    def work(self) -> Work:
        """Nothing that hardware would pay."""
        return Work()

    def _text(self, context: Array) -> Array:
        """`(M, W)`, or a context per class `(C, M, W)`."""
        return _unit(np.tanh(context.reshape(*context.shape[:-2], -1) @ self._into + self._codes) @ self._out)


def run(
    images: int, classes: int, width: int, budget: float, options: dict[str, Any], *, gives: str, per_class: bool
) -> dict[str, float]:
    """GB of memory and CPU seconds of a `sketch` run. The peak is this process's, whatever it did before."""
    SCHEMES["synthetic"] = "bench.memory:SyntheticBox"
    labels = np.arange(images) % classes
    split = Split(source=Unseen(labels), labels=labels)  # type: ignore[arg-type]
    names = tuple(f"class {number}" for number in range(classes))
    evaluator = Serial(
        ProblemSpec(
            box=f"synthetic:{width}?gives={gives}",
            classes=names,
            template="a {}.",
            splits={"train": split},
            prompt={"name": "text", "options": {"per_class": per_class}},
        )
    )
    answering = 0.0

    def timed(*args: Any, call: Any = evaluator.evaluate, **kwargs: Any) -> Any:
        nonlocal answering
        began = time.process_time()
        reply = call(*args, **kwargs)
        answering += time.process_time() - began
        return reply

    begun = search.make("sketch", options).start(evaluator.describe()[1], budget, 1)
    evaluator.evaluate = timed  # type: ignore[method-assign]
    before, started, ledger = _peak(), time.process_time(), Ledger(images=images, budget=budget)
    session = Session(evaluator, ledger, {"train": split})
    losses, written, largest = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder) / "state.safetensors", CHECKPOINT_S)
        for step in steps(begun, session, table=True):
            losses.append(step.best_loss)
            if checkpoint.due or step.last:  # as often as a run writes one, and once where memory is full
                state = step.state()
                assert state is not None
                checkpoint.write(state)
                written, largest = written + 1, max(largest, checkpoint.path.stat().st_size)
    spent = time.process_time() - started
    return {
        "evaluations": ledger.evaluations, "rounds": len(losses), "loss": losses[0],
        "best_loss": losses[-1], "before_gb": before, "peak_gb": _peak(),
        "checkpoints": written, "checkpoint_gb": largest / 2**30,
        "answering_s": answering / len(losses), "searching_s": (spent - answering) / len(losses),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """The command. Exit codes: 0, 1 where the peak is above `--limit`, 2 for a user's mistake."""
    parser = Parser("memory", __doc__)
    for name, value in (("images", 16000), ("classes", 1000), ("width", 512), ("k", 64), ("memory", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--budget", type=float, default=134, help="evaluations; the memory should be full by then")
    parser.add_argument("--limit", type=float, default=4.0, help="GB")
    parser.add_argument("--gives", choices=("features", "scores"), default="features")
    parser.add_argument("--per-class", action="store_true", help="a context per class, as sketch has by default")

    def measure(given: argparse.Namespace) -> dict[str, float]:
        options = {"k": given.k, "memory": given.memory}
        shape = given.images, given.classes, given.width
        return run(*shape, given.budget, options, gives=given.gives, per_class=given.per_class)

    def text(found: dict[str, float]) -> str:
        return "\n".join(f"{name:12} {value:.3f}" for name, value in found.items())

    def above(given: argparse.Namespace, found: dict[str, float]) -> int:
        return int(found["peak_gb"] > given.limit)

    return enter(parser, arguments, measure, text, answer=answer, verdict=above)


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


if __name__ == "__main__":
    sys.exit(main())
