"""An encoder with its shelf, as one that answers: all of it in this process.

Knows nothing of HTTP or Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.artifact import Artifact
from engine.errors import ArtifactError, KeyholeError
from engine.protocols import Towers
from serve import metrics
from serve.answering import ZERO_SHOT, Answer, Ask, Refusal, Timing
from serve.artifact_shelf import VERSION_DIGITS, Entry, Shelf
from serve.encoder import Encoder, EncoderSettings, Outcome, Scored
from serve.folding import Served, fold, refold
from serve.schema import MOST_LABELS, Offer, Version
from serve.settings import Directions
from serve.watching import Watcher

REFOLDED = 256
"""Other classes and templates whose rows are kept."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Who answers an ask."""

    entry: Entry
    version: str
    folded: Served
    shadows: tuple[Entry, ...] = ()


class Replica:
    """An `Answering` of one box.

    Args:
        box: URI.
        watch: As of `Shelf`.
        settings: How it computes.
        classes, template: Of any one artifact: a box is not opened without.
        alone: Refuse artifacts of other boxes. False: leave them to other replicas.

    Raises:
        KeyholeError: The box cannot be opened.
    """

    def __init__(
        self,
        box: str,
        watch: str | Path | None = None,
        settings: EncoderSettings | None = None,
        *,
        classes: Sequence[str],
        template: str,
        alone: bool = True,
    ) -> None:
        self._uri, self._alone = box, alone
        self.encoder = Encoder(box, classes, template, settings or EncoderSettings())
        self.shelf = Shelf(self._fold, watch)
        self._refolded: dict[tuple, Served] = {}
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="refold")
        self._watcher = Watcher(self.shelf)

    def close(self) -> None:
        """End its threads."""
        self._watcher.close()
        self._texts.shutdown(wait=False, cancel_futures=True)
        self.encoder.close()

    def direct(self, directions: Directions) -> None:
        """Offer and lead as they say. Raises as `Shelf.direct`."""
        self.shelf.direct(directions.artifacts, directions.traffic)

    # -----------------------------------------------------------------------------------------------------------------
    # Answering

    async def ask(self, images: Sequence[bytes], asks: Sequence[Ask]) -> list[list[Answer | Refusal]]:
        """As `Answering`."""
        targets = [await self._target(ask) for ask in asks]
        known = [target for target in targets if isinstance(target, _Target)]
        folded = [one.folded for one in known] + [shadow.folded for one in known for shadow in one.shadows]
        if not folded:
            return [[target for target in targets if isinstance(target, Refusal)] for _ in images]
        return [_answers(targets, *found) for found in await self.encoder.answer(images, folded)]

    async def about(self, artifact: str) -> Version | Refusal:
        """As `Answering`."""
        target = await self._target(Ask(artifact=artifact))
        return target if isinstance(target, Refusal) else target.entry.facts

    async def offers(self) -> list[Offer]:
        """As `Answering`."""
        return self.shelf.offers()

    async def ready(self, artifact: str | None = None) -> Refusal | None:
        """As `Answering`."""
        if artifact is not None and self.shelf.resolve(artifact.removesuffix("@" + ZERO_SHOT)) is None:
            return unknown(artifact)
        try:
            await self.encoder.probe()
        except KeyholeError as error:
            metrics.PROBES.record(outcome="failed")
            return Refusal(code="unavailable", message=str(error), retry_after_s=1)
        metrics.PROBES.record(outcome="encoded")
        return None

    async def _target(self, ask: Ask) -> _Target | Refusal:
        """Who answers; rows for other classes are made here."""
        name, _, which = ask.artifact.partition("@")
        bare = which == ZERO_SHOT
        entry = self.shelf.resolve(name if bare else ask.artifact)
        if entry is None and "@" in ask.artifact and not bare:  # it may have appeared since the last look
            await asyncio.get_running_loop().run_in_executor(self._texts, self.shelf.scan)
            entry = self.shelf.resolve(ask.artifact)
        if entry is None:
            return unknown(ask.artifact)
        if ask.template is not None and (not bare or ask.labels is None or ask.template.count("{}") != 1):
            return _bad(f"a template needs one {{}} for the label, labels, and NAME@{ZERO_SHOT}")
        if not bare and ask.labels is None:
            return _Target(entry, entry.version, entry.folded, tuple(self.shelf.shadows(entry)))
        labels = entry.folded.classes if ask.labels is None else ask.labels
        if ask.labels is not None and not _usable(labels):
            return _bad(f"labels: 1 to {MOST_LABELS}, none empty, all different")
        if entry.folded.whole is not None or not isinstance(self.encoder.box, Towers):
            return _bad(f"{entry.box} is asked with its own classes and prompt only: it does not give its features")
        key = (None if bare else entry.version, labels, ask.template or entry.template)
        folded = self._refolded.get(key)
        if folded is None:
            try:
                folded = await asyncio.get_running_loop().run_in_executor(self._texts, self._refold, entry, *key)
            except KeyholeError as error:
                return _bad(str(error))
        return _Target(entry, ZERO_SHOT if bare else entry.version, folded)

    # -----------------------------------------------------------------------------------------------------------------

    def _fold(self, artifact: Artifact) -> Served | None:
        if (box := artifact.meta["box"]) != self._uri:
            if self._alone:
                raise not_served(box, [self._uri])
            return None
        if "text_features" in artifact.arrays:  # nothing is computed: batches go on meanwhile
            return fold(artifact, self.encoder.box, self.encoder.width)
        return self.encoder.compute(fold, artifact, self.encoder.box, self.encoder.width)

    def _refold(self, entry: Entry, version: str | None, labels: tuple[str, ...], template: str) -> Served:
        """Rows for other classes or the bare template, kept for a while. Raises as `refold`."""
        artifact = None
        if version is not None:  # its context is not kept in memory
            artifact = Artifact.load(entry.folder)
            if artifact.digest[:VERSION_DIGITS] != version:
                raise KeyholeError(f"{entry.name}@{version} has been replaced since; ask the latest with these labels")
        made = self.encoder.compute(refold, artifact, self.encoder.box, labels, template)
        self._refolded[version, labels, template] = made
        if len(self._refolded) > REFOLDED:
            self._refolded.pop(next(iter(self._refolded)))  # the oldest
        return made


def _answers(
    targets: Sequence[_Target | Refusal], outcomes: Sequence[Outcome], timing: Timing
) -> list[Answer | Refusal]:
    """Of one image to every ask. Outcomes are of the targets, then of their shadows."""
    outs = iter(outcomes)
    found: list[Answer | Refusal] = []
    shadowed: list[tuple[_Target, Outcome]] = []
    for target in targets:
        if isinstance(target, Refusal):
            found.append(target)
            continue
        outcome = next(outs)
        if target.shadows:
            shadowed.append((target, outcome))
        found.append(outcome if isinstance(outcome, Refusal) else _answer(target, outcome, timing))
    for target, outcome in shadowed:
        for shadow in target.shadows:
            _compare(target.folded, outcome, shadow, next(outs))
    return found


def _answer(target: _Target, scored: Scored, timing: Timing) -> Answer:
    classes = target.folded.classes
    return Answer(
        label=classes[scored.label],
        probability=float(scored.probabilities[scored.label]),
        classes=classes,
        probabilities=scored.probabilities,
        scores=scored.scores,
        features=scored.features,
        artifact=target.entry.name,
        version=target.version,
        model=target.entry.model,
        timing=timing,
    )


def not_served(box: str, served: Iterable[str]) -> ArtifactError:
    """Of an artifact whose box no encoder holds."""
    return ArtifactError(f"it is of {box}, and served are {', '.join(served)}; start the server with it to add its box")


def unknown(asked: str) -> Refusal:
    return Refusal(code="unknown_model", message=f"no model {asked[:100]!r} here; GET /v1/models lists them")


def _bad(message: str) -> Refusal:
    return Refusal(code="bad_request", message=message)


def _usable(labels: Sequence[str]) -> bool:
    return 0 < len(labels) <= MOST_LABELS and len(set(labels)) == len(labels) and all(map(str.strip, labels))


def _compare(folded: Served, outcome: Scored | Refusal, shadow: Entry, other: Scored | Refusal) -> None:
    """Note whether a shadow says the same."""
    if isinstance(outcome, Scored) and isinstance(other, Scored):
        agreed = folded.classes[outcome.label] == shadow.folded.classes[other.label]
        shadow.agreement.images += 1
        shadow.agreement.agreed += agreed
        artifact, version = metrics.ARTIFACTS.label(shadow.name), metrics.SHADOWS.label(shadow.version)
        metrics.SHADOWED.record(artifact=artifact, version=version, agreed=str(agreed).lower())
