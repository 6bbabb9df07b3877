"""Boxes that note every answer they give, importable by Ray workers: `counted:FOLDER?accepts=words&gives=scores`.

A worker knows the scheme once it has unpickled a task whose images are `Counted`: importing this module registers it.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine import boxes
from engine.boxes import toy
from engine.evaluators.problem import CanaryImages
from engine.protocols import Outputs
from engine.task import Task

boxes.SCHEMES["counted"] = "counted:open_box"
boxes.WITHOUT_TORCH |= {"counted"}


class Talking(toy.ToyBox):
    """The toy box, taking words: a template moves every class feature by its own noise."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.spec = dataclasses.replace(self.spec, accepts=frozenset({"words"}))

    def answer(self, prompts, staged, rows):
        sentences = prompts.words or (self.spec.template,) * len(prompts)
        contexts = [self._context(sentence) for sentence in sentences]
        text = toy._NETWORK.text(np.stack(contexts), self.spec.classes)
        return toy.keep_only(Outputs(text=text, image=staged[rows][None], scale=toy.SCALE), self.spec.gives)

    def _context(self, sentence):
        if sentence == self.spec.template:
            return toy._NETWORK.template
        # Longer sentences come nearer to what the images are like.
        share = min(len(sentence), 60) / 60
        noise = np.random.default_rng(list(sentence.encode())).normal(size=toy._NETWORK.template.shape)
        return (toy._NETWORK.template + share * (toy._NETWORK.optimum - toy._NETWORK.template) + 0.3 * noise).astype(
            "f4"
        )


class CountedBox:
    """A box around another. Each answer is a line `SPLIT PAIRS` in a file of its process."""

    def __init__(self, inner, folder: str):
        self.inner, self.spec, self.work, self.knows = inner, inner.spec, inner.work, inner.knows
        self._file = Path(folder, f"answers-{os.getpid()}")

    def stage(self, source):
        return "canary" if isinstance(source, CanaryImages) else source.split, self.inner.stage(source)

    def answer(self, prompts, staged, rows):
        split, images = staged
        with open(self._file, "a") as file:
            file.write(f"{split} {len(prompts) * len(rows)}\n")
        return self.inner.answer(prompts, images, rows)


def open_box(request):
    """The toy, with a note of every answer."""
    made = Talking if request.options.get("accepts") == "words" else toy.ToyBox
    words = {name: getattr(request, name) for name in ("uri", "classes", "template", "gives")}
    return CountedBox(made(**words), request.rest)


@dataclass(frozen=True, slots=True)
class Counted:
    """The images of a split, which says its name."""

    images: toy.ToyImages
    split: str

    def __len__(self):
        return len(self.images)

    def read(self, rows):
        return self.images.read(rows)


def counted_task() -> Task:
    """The toy task, for counted boxes."""
    task = toy.toy_task(seed=1)
    splits = {k: dataclasses.replace(split, source=Counted(split.source, k)) for k, split in task.splits.items()}
    return dataclasses.replace(task, **splits)


def answers(folder) -> list[tuple[str, int]]:
    """Split and pairs of every answer that boxes noted in a folder."""
    lines = [line for path in Path(folder).glob("answers-*") for line in path.read_text().splitlines()]
    return [(split, int(pairs)) for split, pairs in map(str.split, lines)]
