"""What is served and how: the arguments of `serve.app:build`, and what they say of boxes.

Knows nothing of Ray or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.artifact import Artifact
from engine.errors import ArtifactError, KeyholeError, RecipeError
from serve.artifact_shelf import NAME, Traffic
from serve.encoder import EncoderSettings

Count = Annotated[int, Field(ge=1, le=100_000)]
REPLICAS = re.compile(r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?")


class Directions(BaseModel):
    """What may change while replicas go on: their `user_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: dict[str, list[str]] = Field(default_factory=dict)
    """name -> run folders or artifacts, oldest version first."""
    traffic: dict[str, Traffic] = Field(default_factory=dict)
    """name -> who answers for it; the latest version where nothing is said."""


class ServeSettings(Directions):
    """What `serve.app:build` takes: the arguments in a Serve config file."""

    watch: str | None = None
    """A folder whose subfolders are artifacts: those that appear are served, changed ones replaced, others removed."""
    replicas: Annotated[str, StringConstraints(pattern=f"^{REPLICAS.pattern}$")] = "1"
    """Encoders of each box: `N`, or `MIN-MAX` to follow the load."""
    hops: Annotated[int, Field(ge=1, le=2)] | None = None
    """1: replicas answer HTTP themselves; 2: a gateway asks them. None: 1 for one box with one replica, else 2."""
    device: str = "cpu"
    """Where the boxes compute, in torch's words."""
    gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs of a replica; None: one where `device` is cuda."""
    batch: Count = 32
    """Images of a batch, at most."""
    decoders: Count = 2
    """Threads of a replica that decode images."""
    threads: Count = 1
    """Threads of a replica's arithmetic, and CPUs that it asks Ray for."""
    queue: Count = 512
    """Images that may wait in a replica; more are refused with 429."""
    max_body_bytes: Annotated[int, Field(ge=1, le=2**32)] = 128 * 2**20
    """Larger requests are refused with 413."""
    keys: str | None = None
    """A file of API keys' hashes (keys.py); besides it KEYHOLE_API_KEYS. None and no variable: everybody may ask."""

    @property
    def encoder(self) -> EncoderSettings:
        """Of each replica."""
        return EncoderSettings(
            device=self.device, batch=self.batch, decoders=self.decoders, threads=self.threads, queue=self.queue
        )

    @property
    def directions(self) -> dict[str, Any]:
        """The first `user_config`."""
        return self.model_dump(include={"artifacts", "traffic"})

    @property
    def span(self) -> tuple[int, int]:
        """Replicas at least and at most. Raises RecipeError where they are the wrong way round."""
        found = REPLICAS.fullmatch(self.replicas)
        assert found is not None, "the pattern has been checked"
        least, most = int(found[1]), int(found[2] or found[1])
        if most < least:
            raise RecipeError(f"replicas={self.replicas}: write N or MIN-MAX with MIN <= MAX")
        return least, most


def boxes(settings: ServeSettings) -> dict[str, dict[str, Any]]:
    """box URI -> the classes and the template of one of its artifacts, which it is opened with.

    Raises:
        ArtifactError: There is nothing to serve, or a named artifact cannot be used.
    """
    found: dict[str, dict[str, Any]] = {}
    named = [(Path(folder), True) for folders in settings.artifacts.values() for folder in folders]
    if settings.watch is not None:
        watch = Path(settings.watch)
        if not watch.is_dir():
            raise ArtifactError(f"{watch} is no folder: name one whose subfolders are artifacts")
        named += [(folder, False) for folder in sorted(watch.iterdir()) if NAME.fullmatch(folder.name)]
    for folder, must in named:
        try:
            meta: Mapping[str, Any] = Artifact.load(folder).meta
        except KeyholeError:
            if must:
                raise
            continue  # the shelf says why
        found.setdefault(meta["box"], {"classes": meta["classes"], "template": meta["template"]})
    if not found:
        raise ArtifactError("nothing to serve: name run folders, or a folder to watch that holds at least one artifact")
    return found
