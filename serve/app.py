"""The application: from settings to who answers, in this process or on Ray Serve (`serve.app:build`).

One hop: replicas of the one box answer HTTP themselves. Two hops: a gateway answers HTTP and asks the replicas of each
box, so that every box scales apart, and a replica that dies is asked again elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from serve.gateway import Gateway
from serve.replica import Replica
from serve.settings import ServeSettings, boxes

if TYPE_CHECKING:
    from ray.serve import Application


def local(settings: ServeSettings) -> Replica | Gateway:
    """Who answers, all in this process. `close` ends its threads.

    Raises:
        KeyholeError: As `boxes`; a box cannot be opened.
    """
    opened = boxes(settings)

    def replica(uri: str, opening: Mapping[str, Any]) -> Replica:
        made = Replica(uri, settings.watch, settings.encoder, alone=len(opened) == 1, **opening)
        made.direct(settings)
        return made

    replicas = {uri: replica(uri, opening) for uri, opening in opened.items()}
    if len(replicas) == 1:
        return next(iter(replicas.values()))
    gateway = Gateway(replicas, settings.watch)
    gateway.direct(settings)
    return gateway


def build(args: dict[str, Any]) -> Application:
    """The Ray Serve application: `import_path: serve.app:build` with `ServeSettings` as its args.

    Raises:
        KeyholeError: As `boxes`.
        pydantic.ValidationError: A setting is unknown or out of range.
    """
    from serve.deployments import application

    return application(ServeSettings.model_validate(args))
