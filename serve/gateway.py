"""Several encoders as one that answers: each ask goes to the encoder of its artifact's box.

The gateway draws the version (a candidate's share, say) and asks for just that one, so that a request is answered by
one version whichever replica it meets.
Knows nothing of HTTP or Ray: encoders may be in this process or elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.artifact import Artifact
from serve.answering import ZERO_SHOT, Answer, Answering, Ask, Refusal
from serve.artifact_shelf import Shelf
from serve.folding import Served
from serve.replica import not_served, unknown
from serve.schema import Offer, Version
from serve.settings import Directions
from serve.watching import Watcher


class Gateway:
    """An `Answering` over others.

    Args:
        encoders: box URI -> who answers for its artifacts.
        watch: As of `Shelf`.
    """

    def __init__(self, encoders: Mapping[str, Answering], watch: str | Path | None = None) -> None:
        self._encoders = dict(encoders)
        self.shelf = Shelf(self._known, watch)
        self._watcher = Watcher(self.shelf)

    def close(self) -> None:
        """End its thread."""
        self._watcher.close()

    def direct(self, directions: Directions) -> None:
        """Offer and lead as they say. Raises as `Shelf.direct`."""
        self.shelf.direct(directions.artifacts, directions.traffic)

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """As `Answering`."""
        columns: list[list[Answer | Refusal]] = [[] for _ in asks]
        at: dict[str, dict[int, Ask]] = {}
        for number, ask in enumerate(asks):
            name, _, which = ask.artifact.partition("@")
            entry = self.shelf.resolve(name if which == ZERO_SHOT else ask.artifact)
            if entry is None:
                columns[number] = [unknown(ask.artifact)] * len(images)
                continue
            exact = ask if which == ZERO_SHOT else replace(ask, artifact=f"{name}@{entry.version}")
            at.setdefault(entry.box, {})[number] = exact
        await asyncio.gather(*(self._fill(columns, images, box, exact, asks) for box, exact in at.items()))
        return [[column[row] for column in columns] for row in range(len(images))]

    async def about(self, artifact: str) -> Version | Refusal:
        """As `Answering`."""
        entry = self.shelf.resolve(artifact.removesuffix("@" + ZERO_SHOT))
        return unknown(artifact) if entry is None else entry.facts

    async def offers(self) -> list[Offer]:
        """As `Answering`: what the encoders have, and what none of them takes."""
        found = {offer.name: offer for offer in self.shelf.offers() if offer.live is None}
        for offers in await asyncio.gather(*(encoder.offers() for encoder in self._encoders.values())):
            found.update((offer.name, offer) for offer in offers)
        return [found[name] for name in sorted(found)]

    async def ready(self, artifact: str | None = None) -> Refusal | None:
        """As `Answering`."""
        encoders = list(self._encoders.values())
        if artifact is not None:
            entry = self.shelf.resolve(artifact.removesuffix("@" + ZERO_SHOT))
            if entry is None:
                return unknown(artifact)
            encoders = [self._encoders[entry.box]]
        refusals = await asyncio.gather(*(encoder.ready() for encoder in encoders))
        return next(filter(None, refusals), None)

    async def _fill(
        self,
        columns: list[list[Answer | Refusal]],
        images: Sequence[bytes],
        box: str,
        exact: Mapping[int, Ask],
        asks: Sequence[Ask],
    ) -> None:
        """The columns of the asks that go to one encoder.

        An encoder that started after a version's files had been replaced does not know this version. Where the client
        named none, the encoder's own choice answers, as where the traffic names a version that is not there.
        """
        rows = await self._encoders[box].ask(images, list(exact.values()))
        for place, number in enumerate(exact):
            columns[number] = [row[place] for row in rows]
        drawn = (number for number, ask in exact.items() if "@" in ask.artifact and "@" not in asks[number].artifact)
        missed = {number: asks[number] for number in drawn if _unknown(columns[number])}
        if missed:
            await self._fill(columns, images, box, missed, asks)

    def _known(self, artifact: Artifact) -> Served | None:
        """What the gateway must know: the classes. Rows are the encoders'."""
        if (box := artifact.meta["box"]) not in self._encoders:
            raise not_served(box, self._encoders)
        return Served(classes=tuple(artifact.meta["classes"]))


def _unknown(column: Sequence[Answer | Refusal]) -> bool:
    return any(isinstance(outcome, Refusal) and outcome.code == "unknown_model" for outcome in column)
