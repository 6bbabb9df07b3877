"""Image classification sets of the Hugging Face hub, read into a pool as in folders.py (the optional extra `data`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import RecipeError, TaskError, extra
from engine.images import Encoded, EncodedSource
from engine.protocols import Array
from engine.task import Split, Task
from tuning.data.folders import DEFAULT_TEMPLATE, NO_IMAGES


def hub(
    name: str,
    *,
    template: str = DEFAULT_TEMPLATE,
    config: str | None = None,
    train: str = "train",
    val: str | None = None,
    test: str = "test",
    image: str = "image",
    label: str = "label",
) -> Task:
    """The pool of `hf:ORG/NAME`, an image classification set of the Hugging Face hub (needs the extra `data`).

    Options name the configuration, the splits and the columns. Class names are those of the label column, with `_` as
    space.

    Raises:
        RecipeError: The package `datasets` is not installed.
        TaskError: The set, a split or a column does not exist, or the labels have no names.
    """
    if not name:
        raise TaskError("hf: names no data set; give hf:ORG/NAME")
    parts = {
        split: HubImages(name, config, which, image, label)
        for split, which in (("train", train), ("val", val), ("test", test))
        if which is not None
    }
    names = parts["train"].class_names()
    splits = {split: Split(source=source, labels=source.labels()) for split, source in parts.items()}
    return Task(
        uri=f"hf:{name}",
        classes=tuple(word.replace("_", " ") for word in names),
        template=template,
        train=splits["train"],
        val=splits.get("val", NO_IMAGES),
        test=splits["test"],
    )


@dataclass(frozen=True)
class HubImages(EncodedSource):
    """An `ImageSource` of one split of a hub data set: pickled by name, opened where it is read."""

    name: str
    config: str | None
    split: str
    image: str
    label: str

    @cached_property
    def rows(self) -> Any:
        """The opened split, with encoded images.

        Raises:
            RecipeError: The package `datasets` is not installed.
            TaskError: The set, the split or the image column does not exist.
        """
        try:
            import datasets
        except ImportError as error:
            raise RecipeError(
                f"hf:{self.name} needs the package 'datasets', which is not installed; {extra('data')}"
            ) from error
        try:
            opened = datasets.load_dataset(self.name, self.config, split=self.split)
            return opened.cast_column(self.image, datasets.Image(decode=False))
        except (ValueError, KeyError, OSError) as error:
            raise TaskError(
                f"hf:{self.name} split {self.split!r} column {self.image!r} cannot be opened: {error}; "
                "options config, train, val, test and image say what to read"
            ) from error

    def class_names(self) -> list[str]:
        """The class names of the label column. Raises TaskError where it has none."""
        names = getattr(self.rows.features.get(self.label), "names", None)
        if not names:
            raise TaskError(
                f"hf:{self.name} has no named classes in column {self.label!r}; columns are "
                f"{', '.join(self.rows.features)}; say which with ?label="
            )
        return list(names)

    def labels(self) -> Array:
        """`(n,)` int64 labels. Raises TaskError where the column does not exist."""
        if self.label not in self.rows.features:
            raise TaskError(f"hf:{self.name} split {self.split!r} has no column {self.label!r}; say which with ?label=")
        return np.array(self.rows[self.label], np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "rows"}

    def fetch(self, row: int) -> Encoded:
        """One encoded image. Raises TaskError where its file is missing."""
        cell, name = self.rows[int(row)][self.image], f"hf:{self.name} {self.split}[{int(row)}]"
        try:
            return Encoded(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes(), name)
        except OSError as error:
            raise TaskError(f"{name}: {cell['path']} cannot be read ({error.strerror or error})") from None
