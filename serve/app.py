"""The application: from settings to who answers, in this process or on Ray Serve (`serve.app:build`).

One box: its replicas answer HTTP themselves, one hop. Several boxes: a gateway answers HTTP and asks the replicas of
each box, so that every box scales apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from engine.artifact import Artifact
from engine.errors import ArtifactError, KeyholeError
from serve.artifact_shelf import NAME
from serve.encoder import EncoderSettings
from serve.gateway import Gateway
from serve.replica import Replica

Count = Annotated[int, Field(ge=1, le=100_000)]


class ServeSettings(BaseModel):
    """What `serve.app:build` takes: the arguments in a Serve config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: dict[str, list[str]] = Field(default_factory=dict)
    """name -> run folders or artifacts, oldest version first."""
    watch: str | None = None
    """A folder whose subfolders are artifacts: those that appear are served, changed ones replaced, others removed."""
    device: str = "cpu"
    """Where the boxes compute, in torch's words."""
    batch: Count = 32
    """Images of a batch, at most."""
    decoders: Count = 2
    """Threads of a replica that decode images."""
    threads: Count = 1
    """Threads of a replica's arithmetic."""
    queue: Count = 512
    """Images that may wait in a replica; more are refused with 429."""

    @property
    def encoder(self) -> EncoderSettings:
        """Of each replica."""
        return EncoderSettings(
            device=self.device, batch=self.batch, decoders=self.decoders, threads=self.threads, queue=self.queue
        )


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
            meta = Artifact.load(folder).meta
        except KeyholeError:
            if must:
                raise
            continue  # the shelf says why
        found.setdefault(meta["box"], {"classes": meta["classes"], "template": meta["template"]})
    if not found:
        raise ArtifactError("nothing to serve: name run folders, or a folder to watch that holds at least one artifact")
    return found


def local(settings: ServeSettings) -> Replica | Gateway:
    """Who answers, all in this process. `close` ends its threads.

    Raises:
        KeyholeError: As `boxes`; a box cannot be opened.
    """
    opened = boxes(settings)

    def replica(uri: str, opening: Mapping[str, Any]) -> Replica:
        return Replica(uri, settings.artifacts, settings.watch, settings.encoder, alone=len(opened) == 1, **opening)

    replicas = {uri: replica(uri, opening) for uri, opening in opened.items()}
    if len(replicas) == 1:
        return next(iter(replicas.values()))
    return Gateway(replicas, settings.artifacts, settings.watch)
