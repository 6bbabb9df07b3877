"""Served answers are those of the classifier, whoever shares the batch."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from served import KINDS

from engine.classifier import Classifier
from serve.answering import Ask
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
