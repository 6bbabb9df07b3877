"""`keyhole bench memory`: what a table search holds and how long its rounds take, at the size of a 16-shot ImageNet.

The run is an ordinary one in this process, on one thread, checkpoints included. Its task and its box are synthetic,
since only shapes matter: images that are one pixel, random image features, and a fixed random network from the context
to the class features.
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
from unittest.mock import patch

import numpy as np

from bench.cost.timing import stopwatch
from bench.entry import Bench, Parser
from engine.boxes import SCHEMES, BoxRequest, keep_only
from engine.errors import RecipeError
from engine.evaluators.problem import Problem
from engine.protocols import Array, BoxSpec, Outputs, Prompts, TextSpec, Work
from engine.task import ImageSource, Split, Task
from tuning.recipe import make_recipe
from tuning.run import Tuning
from tuning.run_folder import CHECKPOINT

TOKENS, HIDDEN, SCALE, NOISE = 4, 512, 100.0, 6.0
SPARE = 4
"""Images a class that are left for validation."""


@dataclass(frozen=True)
class Pixels:
    """An `ImageSource` of one pixel an image, whose colour is the number of its class."""

    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: Sequence[int]) -> list[Array]:
        """uint8 RGB `(1, 1, 3)` of these rows."""
        return [np.array([[[label >> 16, label >> 8 & 255, label & 255]]], np.uint8) for label in
                (self.labels[row] for row in rows)]  # fmt: skip


def pool(rest: str) -> Task:
    """The task `bench.memory:pool:CLASSES,IMAGES`: so many images a class to draw from, and one to test on."""
    classes, images = map(int, rest.split(","))

    def split(count: int) -> Split:
        labels = np.arange(count * classes) % classes
        return Split(source=Pixels(tuple(labels.tolist())), labels=labels)

    names = tuple(f"class {number}" for number in range(classes))
    return Task(uri=rest, classes=names, template="a {}.", train=split(images), val=split(0), test=split(1))


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

    def stage(self, source: ImageSource) -> Array:
        """`(N, E)`: noise around what the network makes of their classes one step away from the template."""
        random = np.random.default_rng(1)
        away = self._text(self._context + random.standard_normal(self._context.shape, np.float32))
        colours = np.stack([image[0, 0] for image in source.read(range(len(source)))]).astype(np.int64)
        labels = colours @ (1 << 16, 1 << 8, 1) % len(away)
        noise = random.standard_normal((len(source), away.shape[1]), np.float32) / np.float32(np.sqrt(away.shape[1]))
        return _unit(away[labels] + np.float32(NOISE) * noise)

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


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def measure(given: argparse.Namespace) -> dict[str, float]:
    """GB of memory and CPU seconds a round, of those after the first. The peak is that of this process.

    Raises:
        RecipeError: A class has no image.
    """
    shots = given.images // given.classes
    if shots < 1:
        raise RecipeError(f"--images {given.images} are fewer than --classes {given.classes}; give one a class or more")
    recipe = make_recipe(
        {
            "task": f"bench.memory:pool:{given.classes},{shots + SPARE}",
            "box": f"synthetic:{given.width}?gives={given.gives}",
            "method": {"name": "sketch", "k": given.k, "memory": given.memory},
            "prompt": {"per_class": given.per_class, "tokens": TOKENS},
            "shots": shots,
            "budget": given.budget,
        }
    )
    answers = {"answering": [(Problem, "evaluate"), (Problem, "read")]}
    before, losses, largest = _peak(), [], 0
    first: dict[str, float] = {}
    with (
        patch.dict(SCHEMES, {"synthetic": "bench.memory:SyntheticBox"}),
        tempfile.TemporaryDirectory() as home,
        stopwatch(answers, time.process_time) as spent,
    ):
        folder = Path(home, "run")
        tuning = Tuning(recipe, folder)
        for step in tuning:
            now = {**spent, "whole": time.process_time()}
            first = first or now
            losses.append(step.best_loss)
            if (folder / CHECKPOINT).exists():
                largest = max(largest, (folder / CHECKPOINT).stat().st_size)
    rounds = max(1, len(losses) - 1)
    answering, whole = ((now[name] - first[name]) / rounds for name in now)
    return {
        "evaluations": tuning.result["evaluations"], "rounds": len(losses), "loss": losses[0],
        "best_loss": losses[-1], "before_gb": before, "peak_gb": _peak(), "checkpoint_gb": largest / 2**30,
        "answering_s": answering, "searching_s": whole - answering,
    }  # fmt: skip


def table(found: dict[str, float]) -> str:
    """A line a number."""
    return "\n".join(f"{name:13} {value:.3f}" for name, value in found.items())


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    for name, value in (("images", 16000), ("classes", 1000), ("width", 512), ("k", 64), ("memory", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--budget", type=float, default=134, help="evaluations; the memory should be full by then")
    parser.add_argument("--limit", type=float, default=4.0, help="GB; a peak above it is exit code 1")
    parser.add_argument("--gives", choices=("features", "scores"), default="features")
    parser.add_argument("--per-class", action="store_true", help="a context per class, as sketch has by default")


BENCH = Bench(
    settings=settings, measure=measure, table=table,
    verdict=lambda given, found: int(found["peak_gb"] > given.limit),
)  # fmt: skip
