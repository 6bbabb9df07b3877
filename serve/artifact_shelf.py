"""The artifacts on offer, by name and version: added, replaced, removed, rolled back without a restart.

Folders are looked over again and again (`scan`). What is broken is refused with its reason, and the version before it
stays. A request takes what it needs from one reference (`resolve`), which a change replaces as a whole: no request
sees half of one.

Knows nothing of Ray, of HTTP, or of how an artifact is folded.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from json import dumps
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from engine.artifact import META, Artifact
from engine.errors import ArtifactError, KeyholeError
from serve.answering import LATEST
from serve.folding import Served
from serve.schema import Offer, RefusedVersion, Shadowed, Version

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION_DIGITS = 12
KEPT = 5
"""Versions of a name that stay in memory, to be rolled back to."""

logger = logging.getLogger(__name__)

Fold = Callable[[Artifact], Served | None]
"""Raises ArtifactError for what cannot be served; None: it is another encoder's."""
Stamp = tuple[int, int, int]


class Traffic(BaseModel):
    """Who answers requests for a name. Versions may be cut to their first digits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    live: str = LATEST
    """A version to stay at, or to roll back to; `latest`: whichever came last."""
    candidate: str | None = None
    """A version that answers `share` of the requests."""
    share: float = Field(default=0.0, ge=0, le=1)
    shadows: tuple[str, ...] = ()
    """Versions that are asked too and compared; their answers are not sent."""


@dataclass(slots=True)
class Agreement:
    """How often a shadow said the same. Counts may be short by a few under load: they are not locked."""

    images: int = 0
    agreed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entry:
    """One version of an artifact, ready to answer."""

    name: str
    version: str
    folder: Path
    """Where it was read; what lies there now may be another version."""
    box: str
    model: str
    template: str
    method: str
    accuracy: float | None
    zero_shot_accuracy: float | None
    test_images: int
    folded: Served
    agreement: Agreement = field(default_factory=Agreement)

    @property
    def facts(self) -> Version:
        """What a client may know of it."""
        return Version(
            version=self.version,
            box=self.box,
            model=self.model,
            classes=self.folded.classes,
            template=self.template,
            method=self.method,
            accuracy=self.accuracy,
            zero_shot_accuracy=self.zero_shot_accuracy,
            test_images=self.test_images,
            row_bytes=self.folded.row_bytes,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelved:
    """All of one name."""

    versions: tuple[Entry, ...] = ()
    """Newest last."""
    traffic: Traffic = Traffic()
    refused: tuple[RefusedVersion, ...] = ()
    """The latest refusal of each folder that is broken now."""

    def version(self, digits: str) -> Entry | None:
        """The newest version that begins with these digits, or the `latest`."""
        if digits == LATEST:
            return self.versions[-1] if self.versions else None
        return next((entry for entry in reversed(self.versions) if digits and entry.version.startswith(digits)), None)

    @property
    def live(self) -> Entry | None:
        """Who answers. Where traffic names a version that is not there, the latest does."""
        return self.version(self.traffic.live) or self.version(LATEST)


class Shelf:
    """Artifacts by name.

    Args:
        fold: Makes an artifact answer.
        watch: A folder whose subfolders are artifacts, or run folders, by name.
    """

    def __init__(self, fold: Fold, watch: str | Path | None = None) -> None:
        self._fold = fold
        self._given: dict[str, list[Path]] = {}
        self._watch = None if watch is None else Path(watch)
        self._shelf: dict[str, Shelved] = {}
        self._traffic: dict[str, Traffic] = {}
        self._stamps: dict[Path, tuple[str, Stamp]] = {}
        self._missing: set[Path] = set()
        self._words: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._lock = threading.Lock()

    # -----------------------------------------------------------------------------------------------------------------
    # What requests ask

    def resolve(self, asked: str) -> Entry | None:
        """Who answers `NAME`, `NAME@VERSION` or `NAME@latest`; None: nobody is called so."""
        name, at, version = asked.partition("@")
        shelved = self._shelf.get(name)
        if shelved is None:
            return None
        if at:
            return shelved.version(version)
        traffic = shelved.traffic
        if traffic.candidate and random.random() < traffic.share:
            return shelved.version(traffic.candidate) or shelved.live
        return shelved.live

    def shadows(self, entry: Entry) -> list[Entry]:
        """Other versions that are to be compared with this one's answer."""
        shelved = self._shelf.get(entry.name)
        found = [] if shelved is None else [shelved.version(digits) for digits in shelved.traffic.shadows]
        return [other for other in found if other is not None and other is not entry]

    def offers(self) -> list[Offer]:
        """The state of the shelf, by name."""
        return [_offer(name, shelved) for name, shelved in sorted(self._shelf.items())]

    def entries(self) -> list[Entry]:
        """Who answers each name."""
        return [entry for shelved in self._shelf.values() if (entry := shelved.live) is not None]

    # -----------------------------------------------------------------------------------------------------------------
    # What changes it

    def direct(self, artifacts: Mapping[str, Sequence[str | Path]], traffic: Mapping[str, Traffic]) -> None:
        """Offer these artifacts besides those of the watched folder, and lead the traffic anew.

        Args:
            artifacts: name -> folders (run folders or artifacts), oldest version first. Those named before, and not
                now, are removed.
            traffic: Of these names; that of all others goes to the latest version.

        Raises:
            ArtifactError: A name is not one of letters, digits, dots, hyphens and underscores.
        """
        for name in artifacts:
            if not NAME.fullmatch(name):
                raise ArtifactError(f"artifact name {name[:100]!r}: use letters, digits, dots, hyphens and underscores")
        with self._lock:
            self._given = {name: [Path(folder) for folder in folders] for name, folders in artifacts.items()}
        self.scan()
        with self._lock:
            self._traffic = dict(traffic)
            self._shelf = {
                name: replace(shelved, traffic=self._traffic.get(name, Traffic()))
                for name, shelved in self._shelf.items()
            }
        for name, wanted in traffic.items():
            shelved = self._shelf.get(name, Shelved())
            for digits in (wanted.live, wanted.candidate, *wanted.shadows):
                if digits and shelved.version(digits) is None:
                    logger.warning("traffic of %s: there is no version %s; the latest answers for it", name, digits)

    def scan(self) -> bool:
        """Look all folders over; whether anything changed. May be called from any thread, one at a time goes on."""
        with self._lock:
            before = self._shelf
            folders = self._folders()
            for name, folder in folders:
                stamp = _stamp(folder)
                if stamp is None and name in self._given:
                    if folder not in self._stamps:  # named on purpose, and never there: say so. Later, the old stays
                        self._stamps[folder] = name, (0, 0, 0)
                        self._take(name, folder)
                elif stamp is None:
                    self._lose(folder)
                elif self._stamps.get(folder) != (name, stamp):
                    self._missing.discard(folder)
                    self._stamps[folder] = name, stamp
                    self._take(name, folder)
            for folder in set(self._stamps) - {folder for _, folder in folders}:
                self._lose(folder)
            return self._shelf is not before

    def _folders(self) -> list[tuple[str, Path]]:
        """Names and folders in which an artifact should be."""
        found = [(name, folder) for name, folders in self._given.items() for folder in folders]
        if self._watch is not None and self._watch.is_dir():
            names = sorted(item.name for item in self._watch.iterdir() if not item.name.endswith(".tmp"))
            found += [(name, self._watch / name) for name in names if NAME.fullmatch(name)]
        return found

    def _take(self, name: str, folder: Path) -> None:
        """Put what lies in a folder on the shelf, or note why not."""
        shelved = self._shelf.get(name) or Shelved(traffic=self._traffic.get(name, Traffic()))
        refused = tuple(old for old in shelved.refused if old.source != folder.name)
        try:
            entry = self._entry(name, folder)
        except KeyholeError as error:
            reason = str(error).replace(str(folder), folder.name)
            logger.warning("%s is refused: %s", name, reason)
            refused = (*refused, RefusedVersion(source=folder.name, reason=reason))
            self._put(name, replace(shelved, refused=refused))
            return
        if entry is None:
            return
        others = tuple(old for old in shelved.versions if old.version != entry.version)
        self._put(name, replace(shelved, versions=(*others, entry)[-KEPT:], refused=refused))

    def _entry(self, name: str, folder: Path) -> Entry | None:
        artifact = Artifact.load(folder)
        folded = self._fold(artifact)
        if folded is None:
            return None
        meta, metrics = artifact.meta, artifact.meta["metrics"]
        classes = self._words.setdefault(folded.classes, folded.classes)  # a thousand artifacts of the same classes
        return Entry(
            name=name,
            version=artifact.digest[:VERSION_DIGITS],
            folder=folder,
            box=meta["box"],
            model=model_of(meta["box"], meta["identity"]),
            template=meta["template"],
            method=meta["method"],
            accuracy=metrics["accuracy"],
            zero_shot_accuracy=metrics["zero_shot_accuracy"],
            test_images=metrics["test_images"],
            folded=replace(folded, classes=classes),
        )

    def _lose(self, folder: Path) -> None:
        """A folder without an artifact. One that is being replaced is away for a moment: it is gone the second time."""
        if folder not in self._stamps:
            return
        if folder not in self._missing:
            self._missing.add(folder)
            return
        self._missing.discard(folder)
        name, _ = self._stamps.pop(folder)
        shelved = self._shelf.get(name)
        if shelved is None:
            return
        left = replace(
            shelved,
            versions=tuple(entry for entry in shelved.versions if entry.folder != folder),
            refused=tuple(old for old in shelved.refused if old.source != folder.name),
        )
        self._put(name, left if left.versions or left.refused else None)

    def _put(self, name: str, shelved: Shelved | None) -> None:
        """The switch: one reference, seen whole or not at all."""
        others = {other: kept for other, kept in self._shelf.items() if other != name}
        self._shelf = others if shelved is None else {**others, name: shelved}


def model_of(box: str, identity: Mapping[str, object]) -> str:
    """URI and identity of a frozen model in one line."""
    return f"{box}#{sha256(dumps(identity, sort_keys=True).encode()).hexdigest()[:VERSION_DIGITS]}"


def _stamp(folder: Path) -> Stamp | None:
    """What changes when an artifact in a folder, or in a run folder, is replaced; None where there is none."""
    for home in (folder, folder / "artifact"):
        try:
            found = (home / META).stat()
        except OSError:
            continue
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _offer(name: str, shelved: Shelved) -> Offer:
    live, traffic = shelved.live, shelved.traffic
    candidate = shelved.version(traffic.candidate or "")
    shadows = [entry for digits in traffic.shadows if (entry := shelved.version(digits)) is not None]
    return Offer(
        name=name,
        live=None if live is None else live.version,
        candidate=None if candidate is None else candidate.version,
        share=traffic.share if candidate is not None else 0.0,
        shadows=tuple(
            Shadowed(version=entry.version, images=entry.agreement.images, agreed=entry.agreement.agreed)
            for entry in shadows
        ),
        versions=tuple(entry.facts for entry in shelved.versions),
        refused=shelved.refused,
    )
