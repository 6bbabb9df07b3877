"""The application's deployments on Ray Serve, and how one asks another.

`user_config` (`settings.Directions`) changes artifacts and traffic in place, without a new replica. In a Serve config
file it is written for each deployment (`keyhole`, `encoder-0`, ...); a change of the application's `args` is a new
version, which replaces all replicas.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from engine.errors import BoxError, RecipeError
from serve.answering import Answer, Answering, Ask, Refusal
from serve.gateway import Gateway
from serve.keys import load_keys
from serve.replica import Replica
from serve.routes import make_api
from serve.schema import Offer, Version
from serve.settings import Directions, ServeSettings, boxes
from serve.telemetry import log_to_stderr

GATEWAY_CPUS = 0.1
"""What a gateway asks Ray for: it computes next to nothing."""

logger = logging.getLogger(__name__)


class _Directed:
    """A deployment whose `answering` follows `user_config`, and is healthy while it encodes."""

    answering: Replica | Gateway

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Ray Serve's: at the start, and whenever `user_config` changes."""
        directions = Directions.model_validate(config)
        await asyncio.get_running_loop().run_in_executor(None, self.answering.direct, directions)

    async def check_health(self) -> None:
        """Ray Serve's: raise where the replica is to be replaced."""
        if isinstance(self.answering, Replica) and (refusal := await self.answering.ready()) is not None:
            raise BoxError(refusal.message)

    def _api(self, settings: ServeSettings) -> Any:
        log_to_stderr()
        return make_api(self.answering, max_body_bytes=settings.max_body_bytes, keys=load_keys(settings.keys))


@ray_serve.ingress()
class OneHop(_Directed):
    """A replica that answers HTTP itself."""

    def __init__(self, settings: dict[str, Any], uri: str, opening: Mapping[str, Any]) -> None:
        self._settings = ServeSettings.model_validate(settings)
        self.answering = Replica(uri, self._settings.watch, self._settings.encoder, **opening)

    def __serve_build_asgi_app__(self) -> Any:
        return self._api(self._settings)


@ray_serve.ingress()
class Front(_Directed):
    """The gateway: HTTP in, questions to the encoders out."""

    def __init__(self, settings: dict[str, Any], encoders: Mapping[str, DeploymentHandle]) -> None:
        self._settings = ServeSettings.model_validate(settings)
        self.answering = Gateway({uri: Asking(handle) for uri, handle in encoders.items()}, self._settings.watch)

    def __serve_build_asgi_app__(self) -> Any:
        return self._api(self._settings)


class Encoding(_Directed):
    """A replica that a gateway asks."""

    def __init__(self, settings: dict[str, Any], uri: str, opening: Mapping[str, Any], alone: bool) -> None:
        given = ServeSettings.model_validate(settings)
        self.answering = Replica(uri, given.watch, given.encoder, alone=alone, **opening)

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """As `Answering`."""
        return await self.answering.ask(images, asks)

    async def about(self, artifact: str) -> Version | Refusal:
        """As `Answering`."""
        return await self.answering.about(artifact)

    async def offers(self) -> list[Offer]:
        """As `Answering`."""
        return await self.answering.offers()

    async def ready(self) -> Refusal | None:
        """As `Answering`."""
        return await self.answering.ready()


class Asking(Answering):
    """An `Answering` that asks the replicas behind a handle; one that dies is asked for once more, elsewhere."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """As `Answering`."""
        found = await self._call("ask", list(images), list(asks))
        return [[found] * len(asks) for _ in images] if isinstance(found, Refusal) else found

    async def about(self, artifact: str) -> Version | Refusal:
        """As `Answering`."""
        return await self._call("about", artifact)

    async def offers(self) -> list[Offer]:
        """As `Answering`."""
        found = await self._call("offers")
        return [] if isinstance(found, Refusal) else found

    async def ready(self, artifact: str | None = None) -> Refusal | None:
        """As `Answering`, of any one replica."""
        return await self._call("ready")

    async def _call(self, method: str, *args: Any) -> Any:
        """What the method gives, or a refusal where no replica answers."""
        for last in (False, True):
            try:
                return await getattr(self._handle, method).remote(*args)
            except BackPressureError:
                return Refusal(code="overloaded", message="too many requests wait; try again", retry_after_s=1)
            except (RayError, RayServeException) as error:
                logger.warning("an encoder failed%s: %s", "" if last else ", asking another", error)
        return Refusal(code="unavailable", message="no encoder answers now; try again", retry_after_s=2)


def application(settings: ServeSettings) -> ray_serve.Application:
    """The deployments, bound to each other.

    Raises:
        KeyholeError: As `boxes`.
    """
    opened = boxes(settings)
    init = settings.model_dump(exclude={"artifacts", "traffic"})  # a change of these is no new replica
    least, most = settings.span
    if (settings.hops or (1 if len(opened) == 1 and most == 1 else 2)) == 1:
        if len(opened) > 1:
            raise RecipeError(f"hops=1 is for one box, and the artifacts are of {', '.join(opened)}; leave hops out")
        (only,) = opened.items()
        return _options(ray_serve.deployment(OneHop), "keyhole", settings, encodes=True).bind(init, *only)
    encoders = {}
    for number, (uri, opening) in enumerate(opened.items()):
        deployment = _options(ray_serve.deployment(Encoding), f"encoder-{number}", settings, encodes=True)
        encoders[uri] = deployment.bind(init, uri, opening, len(opened) == 1)
    return _options(ray_serve.deployment(Front), "keyhole", settings, encodes=False).bind(init, encoders)


def _options(deployment: Any, name: str, settings: ServeSettings, *, encodes: bool) -> Any:
    """A deployment with its replicas, its share of the machine, and the first `user_config`."""
    least, most = settings.span if encodes else (1, 1)
    scaled: dict[str, Any] = {"num_replicas": least}
    if most > least:
        scaled = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 4}}
    # More than may wait in an encoder, so that it refuses with a time to try again; Ray would let requests pile up.
    ongoing = 2 * settings.queue * (1 if encodes else settings.span[1])
    gpus = settings.gpus if settings.gpus is not None else float(settings.device.startswith("cuda"))
    return deployment.options(
        name=name,
        user_config=settings.directions,
        max_ongoing_requests=ongoing,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        ray_actor_options={
            "num_cpus": settings.threads if encodes else GATEWAY_CPUS,
            "num_gpus": gpus if encodes else 0,
            # Clients' images leave no features on the disk.
            "runtime_env": {"env_vars": {"KEYHOLE_CACHE": "off", "OMP_NUM_THREADS": str(settings.threads)}},
        },
        **scaled,
    )
