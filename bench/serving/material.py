"""What a serving bench serves and asks: artifacts of one box, and images in the size that clients send."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.serving.load import written
from bench.serving.ways import path_of
from engine.artifact import Artifact
from engine.protocols import Array

PHOTO = (500, 375)
"""Sides of the images for models that do not take small ones, as most of ImageNet's."""


def artifacts(box: str, task: str, folder: Path, count: int) -> None:
    """Write `bench-0`, tuned for a moment, and variants of it: the rows of each are a little different.

    Args:
        box, task: URIs.
        folder: Gets a subfolder for each.
        count: How many.
    """
    from keyhole import tune

    settings = {"method": "momentum", "shots": 1, "budget": 11, "test_images": 1}
    first = tune(box, task, **settings).artifact
    first.save(folder / "bench-0")
    for number in range(1, count):
        variant(first, number).save(folder / f"bench-{number}")


def variant(artifact: Artifact, seed: int) -> Artifact:
    """The same with other rows."""
    rows = artifact.arrays["text_features"]
    moved = rows + np.random.default_rng(seed).normal(scale=0.01, size=rows.shape)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return replace(artifact, arrays={**artifact.arrays, "text_features": moved.astype(np.float32)})


def encoded(images: Sequence[Array], side: int) -> list[bytes]:
    """PNG as the task has them for a model of `side` pixels that takes no more; else JPEG of `PHOTO`."""
    found = []
    for pixels in images:
        image, stream = Image.fromarray(pixels), io.BytesIO()
        if max(image.size) < side:
            image.resize(PHOTO, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        else:
            image.save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def requests(way: str, count: int, artifacts: int, images: Sequence[bytes]) -> list[bytes]:
    """Requests as they go over the wire, each with `count` images: the body is the image, or JSON with base64.

    With several artifacts, the requests go to all of them in turn.
    """
    found = []
    for number in range(max(artifacts, 8)):
        some = [images[(number * count + place) % len(images)] for place in range(count)]
        body, kind = some[0], "application/octet-stream"
        if count > 1:
            body = json.dumps({"images": [base64.b64encode(image).decode() for image in some]}).encode()
            kind = "application/json"
        found.append(written(path_of(way, f"bench-{number % artifacts}"), body, kind))
    return found
