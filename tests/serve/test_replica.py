"""Served answers are those of the classifier, whoever shares the batch."""

from __future__ import annotations

import asyncio
import struct
import time

import numpy as np
import pytest
from served import KINDS

from engine.artifact import Artifact
from engine.classifier import Classifier
from serve.answering import Answer, Ask, Refusal
from serve.app import local
from serve.settings import ServeSettings


@pytest.fixture(scope="module")
def answering(runs):
    made = local(ServeSettings(artifacts={kind: [str(folder)] for kind, folder in runs.items()}, batch=8))
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_classifiers(answering, runs, photo, kind):
    images = [photo(seed) for seed in range(5)]
    labels, probabilities = Classifier.load(runs[kind]).predict(images)
    found = [row[0] for row in asyncio.run(answering.ask(images, [Ask(artifact=kind)]))]
    assert [answer.label for answer in found] == labels
    np.testing.assert_allclose([answer.probabilities for answer in found], probabilities, atol=1e-5)


def test_artifacts_share_a_batch_and_frames_are_data_of_a_row(runs, photo):
    """One encode for images of three artifacts of one box, one of them with a frame."""
    made = local(ServeSettings(artifacts={kind: [str(runs[kind])] for kind in ("digits", "words", "pixels")}))
    images, sizes = [photo(seed) for seed in range(4)], []
    honest = made.encoder.box.encode

    def counted(pixels, frames=None):
        sizes.append(len(pixels))
        return honest(pixels, frames)

    made.encoder.box.encode = counted
    asks = [Ask(artifact=kind) for kind in ("digits", "words", "pixels")]

    async def everybody():
        await made.ask(images[:1], asks[:1])  # the queue is empty: it does not wait
        return await asyncio.gather(*(made.ask([image], asks) for image in images))

    try:
        rows = [row[0] for row in asyncio.run(everybody())]
    finally:
        made.close()
    # Four images without a frame serve two artifacts, the same four with it the third.
    assert sizes[0] == 1 and sum(sizes[1:]) == 8
    for number, ask in enumerate(asks):
        _, probabilities = Classifier.load(runs[ask.artifact]).predict(images)
        np.testing.assert_allclose([row[number].probabilities for row in rows], probabilities, atol=1e-5)
        assert {(row[number].artifact, row[number].model.split("#")[0]) for row in rows} == {
            (ask.artifact, "mini:resnet")
        }


def test_one_bad_image_fails_alone(answering, photo):
    cut = photo(1, size=(64, 64))[:-200]
    images = [photo(0), b"", cut, b"%PDF-1.4", photo(2, format="JPEG"), photo(3, format="WEBP")]
    for kind in ("shared-context", "top-k"):
        row = [found[0] for found in asyncio.run(answering.ask(images, [Ask(artifact=kind)]))]
        told = [found.code if isinstance(found, Refusal) else found.artifact for found in row]
        assert told == [kind, "bad_image", "bad_image", "unsupported_type", kind, kind]
        assert not any("/" in found.message or "0x" in found.message for found in row if isinstance(found, Refusal))


def test_a_bomb_is_refused_before_it_is_decoded(answering, photo, monkeypatch):
    from engine import images

    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    ((refusal,),) = asyncio.run(answering.ask([photo()], [Ask(artifact="digits")]))
    assert refusal.code == "bad_image" and "20 x 9 pixels" in refusal.message


def test_damage_that_pillow_warns_of_is_not_kept_in_memory(runs, photo, recwarn):
    """A warning's text has numbers of the file in it, so each is a new one; and Python keeps those it has shown."""
    made = local(ServeSettings(artifacts={"digits": [str(runs["digits"])]}))
    head = b"Exif\0\0II*\0\x08\0\0\0\x01\0"
    images = []
    for tag in range(20):
        exif = head + struct.pack("<HHII", 4000 + tag, 7, 10**6 + tag, 8)
        images.append(b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + photo(format="JPEG")[2:])
    rows = asyncio.run(made.ask(images, [Ask(artifact="digits")]))
    made.close()
    assert all(isinstance(found, Answer) for (found,) in rows) and not recwarn.list


def test_other_classes_get_the_tuned_context_or_the_bare_template(answering, runs, photo):
    """What `Classifier.open` with these classes says; and the frozen model's own."""
    image, labels = photo(), ("digit two", "digit one")
    for artifact, template in (("digits", None), ("digits@zero-shot", "a photo of the {}.")):
        ((answer,),) = asyncio.run(answering.ask([image], [Ask(artifact=artifact, labels=labels, template=template)]))
        classifier = Classifier.load(runs["digits"])
        if template is not None:
            classifier.artifact.arrays.pop("context")
        _, expected = classifier.open(classes=labels, template=template).predict(image)
        assert answer.classes == labels
        np.testing.assert_allclose(answer.probabilities, expected[0], atol=1e-5)
    ((bare,),) = asyncio.run(answering.ask([image], [Ask(artifact="digits@zero-shot")]))
    assert (bare.version, len(bare.classes)) == ("zero-shot", 10)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (Ask(artifact="nobody"), "unknown_model"),
        (Ask(artifact="digits@ffff"), "unknown_model"),
        (Ask(artifact="digits@"), "unknown_model"),
        (Ask(artifact="nobody@zero-shot"), "unknown_model"),
        (Ask(artifact="digits", labels=()), "bad_request"),
        (Ask(artifact="digits", labels=("digit one", "digit one")), "bad_request"),
        (Ask(artifact="digits", labels=("", "digit one")), "bad_request"),
        (Ask(artifact="digits", labels=("unheard-of",)), "bad_request"),
        (Ask(artifact="digits", template="a {}."), "bad_request"),
        (Ask(artifact="digits@zero-shot", labels=("digit one",), template="no place"), "bad_request"),
        (Ask(artifact="linear", labels=("circle", "moon")), "bad_request"),
        (Ask(artifact="top-k", labels=("circle",)), "bad_request"),
    ],
)
def test_an_ask_that_cannot_be_answered_is_refused_alone(answering, photo, ask, code):
    ((refusal, answer),) = asyncio.run(answering.ask([photo()], [ask, Ask(artifact="digits")]))
    assert isinstance(refusal, Refusal) and refusal.code == code and isinstance(answer, Answer)


def test_more_than_may_wait_is_refused_with_a_time(runs, photo):
    made = local(ServeSettings(artifacts={"digits": [str(runs["digits"])]}, queue=3))

    async def both():
        return await made.ask([photo(seed) for seed in range(8)], [Ask(artifact="digits")])

    try:
        rows = [row[0] for row in asyncio.run(both())]
        again = asyncio.run(made.ask([photo()], [Ask(artifact="digits")]))[0][0]
    finally:
        made.close()
    refused = [found for found in rows if isinstance(found, Refusal)]
    assert len(refused) == 5 and {(found.code, found.retry_after_s) for found in refused} == {("overloaded", 1)}
    assert isinstance(again, Answer)


def test_shadows_are_compared_and_not_answered(runs, photo, tmp_path):
    settings = ServeSettings(
        artifacts={"shapes": [str(runs["shared-context"]), str(runs["linear"])]},
        traffic={"shapes": {"live": "latest", "shadows": ("latest",)}},
    )
    made = local(settings)
    try:
        (offer,) = asyncio.run(made.offers())
        old, new = (version.version for version in offer.versions)
        shadowed = {"shapes": {"live": new, "shadows": (old,)}}
        made.direct(settings.model_validate({**settings.model_dump(), "traffic": shadowed}))
        images = [photo(seed) for seed in range(6)]
        rows = [row[0] for row in asyncio.run(made.ask(images, [Ask(artifact="shapes")]))]
        (offer,) = asyncio.run(made.offers())
    finally:
        made.close()
    expected = [Classifier.load(runs[kind]).predict(images)[0] for kind in ("shared-context", "linear")]
    assert [row.label for row in rows] == expected[1] and {row.version for row in rows} == {new}
    agreed = sum(first == second for first, second in zip(*expected, strict=True))
    assert [(told.version, told.images, told.agreed) for told in offer.shadows] == [(old, 6, agreed)]


def test_a_watched_folder_is_served_within_two_seconds(runs, photo, tmp_path):
    """A new artifact, then a new version of it, under requests that go on."""
    Artifact.load(runs["shared-context"]).save(tmp_path / "first")
    made = local(ServeSettings(watch=str(tmp_path)))
    image = photo()

    async def until(name: str, version: str) -> float:
        start = time.monotonic()
        while time.monotonic() - start < 10:
            first, found = (await made.ask([image], [Ask(artifact="first"), Ask(artifact=name)]))[0]
            assert isinstance(first, Answer)
            if isinstance(found, Answer) and found.version == version:
                return time.monotonic() - start
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} did not come")

    try:
        for kind in ("shared-context", "linear"):
            artifact = Artifact.load(runs[kind])
            artifact.save(tmp_path / "second")
            assert asyncio.run(until("second", artifact.digest[:12])) < 2.5
    finally:
        made.close()
