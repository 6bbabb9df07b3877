"""`POST /v1/decisions` as OpenAI's own client sends and reads it."""

from __future__ import annotations

import numpy as np
import openai
import pytest

from engine.classifier import Classifier

WORDS = ("circle", "red square", "digit two")


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


@pytest.fixture
def decide(client, in_base64):
    """Answers about an image: `decide(image, *questions, model="digits")`."""

    def ask(image: bytes, *questions: dict, model: str = "digits"):
        parts = [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": in_base64(image, uri=True)},
        ]
        return client.decisions.create(model=model, input=[{"role": "user", "content": parts}], questions=questions)

    return ask


def _choice(values, instructions: str = "Which?", **more) -> dict:
    choices = [value if isinstance(value, dict) else {"value": value} for value in values]
    return {"type": "choice", "instructions": instructions, "choices": choices, **more}


def _predicate(instructions, **more) -> dict:
    return {"type": "predicate", "instructions": instructions, **more}


def _bare(runs, image: bytes, sentences) -> np.ndarray:
    """The frozen model's own probabilities."""
    classifier = Classifier.load(runs["digits"])
    classifier.artifact.arrays.pop("context")
    return classifier.open(classes=sentences, template="{}").predict(image)[1][0]


def test_classes_get_tuned_probabilities(decide, runs, photo):
    image, classifier = photo(), Classifier.load(runs["digits"])
    _, (expected,) = classifier.predict(image)
    classes = classifier.artifact.meta["classes"]
    some = classes[7:1:-2]
    decision = decide(image, _choice(classes, name="all"), _choice(some), _predicate(classes[4]))
    every, few, one = decision.answers
    assert decision.model == f"digits@{classifier.artifact.digest[:12]}"
    assert (every.name, every.type, few.name) == ("all", "choice", None)
    assert every.choice == classes[expected.argmax()] and every.confidence == pytest.approx(expected.max(), abs=1e-5)
    np.testing.assert_allclose([told.probability for told in every.probabilities], expected, atol=1e-5)
    assert [told.value for told in few.probabilities] == list(some)
    part = expected[7:1:-2]
    np.testing.assert_allclose([told.probability for told in few.probabilities], part / part.sum(), atol=1e-5)
    assert one.probability == pytest.approx(expected[4], abs=1e-5)


def test_free_words_get_the_frozen_models_own(decide, runs, photo):
    image = photo(5)
    template = Classifier.load(runs["digits"]).artifact.meta["template"]
    in_template, in_instructions, described, said, level = decide(
        image,
        _choice(WORDS),
        _choice(WORDS, "a red {}."),
        _choice([{"value": True, "description": "a photo of a circle."}, {"value": False, "description": "a photo."}]),
        _predicate("a photo of a circle."),
        {"type": "score", "instructions": "How?", "levels": [{"label": word} for word in WORDS]},
    ).answers
    for answer, sentences in (
        (in_template, [template.format(word) for word in WORDS]),
        (in_instructions, [f"a red {word}." for word in WORDS]),
        (described, ["a photo of a circle.", "a photo."]),
    ):
        expected = _bare(runs, image, sentences)
        np.testing.assert_allclose([told.probability for told in answer.probabilities], expected, atol=1e-5)
    assert [told.value for told in described.probabilities] == [True, False]
    empty = template.replace(" {}", "")
    expected = _bare(runs, image, ["a photo of a circle.", empty])
    assert said.probability == pytest.approx(expected[0], abs=1e-5)
    expected = _bare(runs, image, [template.format(word) for word in WORDS])
    assert [told.value for told in level.probabilities] == [0, 1, 2]
    assert level.score == pytest.approx(expected @ [0, 1, 2], abs=1e-5)


def test_a_question_that_cannot_be_answered_is_refused_alone(decide, runs, photo):
    image = photo()
    pictured = [{"type": "input_image", "image_url": "data:image/png;base64,"}]
    questions = {
        "unheard": _predicate("an unheard-of word"),
        "twice": _choice(["circle", "circle"]),
        "picture": _predicate(pictured),
        "boolean": _choice([True, False]),
        "empty": _predicate(" "),
        "long": _predicate("circle " * 200),
    }
    good = [_predicate("a photo of a circle."), _choice(WORDS)]
    named = [{**question, "name": name} for name, question in questions.items()]
    answers = decide(image, good[0], *named, good[1]).answers
    assert [answer.type for answer in answers] == ["predicate", *["refusal"] * len(questions), "choice"]
    assert [answer.name for answer in answers[1:-1]] == list(questions)
    reasons = {answer.name: answer.reason for answer in answers[1:-1]}
    assert all(reasons.values()) and "unheard" in reasons["unheard"]
    alone = decide(image, *good).answers
    assert answers[0].probability == pytest.approx(alone[0].probability, abs=1e-5)
    assert answers[-1].confidence == pytest.approx(alone[1].confidence, abs=1e-5)


def test_models_that_tell_less_refuse_question_by_question(decide, photo):
    for model in ("labels", "top-k"):
        answers = decide(photo(), _choice(["circle", "moon"]), _predicate("a circle"), model=model).answers
        assert {answer.type for answer in answers} <= {"refusal", "choice"} and answers[1].type == "refusal"


def test_many_questions_encode_the_image_once(serving, runs, photo, in_base64):
    client, sizes = serving(digits=runs["digits"]), []
    honest = client.answering.encoder.box.encode

    def counted(pixels, frames=None):
        sizes.append(len(pixels))
        return honest(pixels, frames)

    client.answering.encoder.box.encode = counted
    part = {"type": "input_image", "image_url": in_base64(photo(), uri=True)}
    questions = [_predicate(f"a {color} {shape}.") for color in ("red", "blue") for shape in ("circle", "square")]
    questions += [_choice(["digit one", "digit two"]), _choice(WORDS)]
    body = {"model": "digits", "input": [{"role": "user", "content": [part]}], "questions": questions}
    answers = client.post("/v1/decisions", json=body).json()["answers"]
    assert [answer["type"] for answer in answers] == ["predicate"] * 4 + ["choice"] * 2 and sizes == [1]


def test_sentences_beyond_the_limit_are_refused_and_the_rest_answered(decide, photo, monkeypatch):
    monkeypatch.setattr("serve.dialects.decisions.MOST_LABELS", 4)
    first, second, third = decide(photo(), _choice(WORDS), _choice(["moon", "star"]), _choice(WORDS[:2])).answers
    assert (first.type, second.type, third.type) == ("choice", "refusal", "choice") and "4" in second.reason


def test_the_image_is_at_fault(client, decide, photo, in_base64):
    question = _predicate("digit two")
    with pytest.raises(openai.BadRequestError, match="truncated"):
        decide(photo(1, size=(64, 64))[:-200], question)
    with pytest.raises(openai.NotFoundError, match="no model 'nobody' here") as caught:
        decide(photo(), question, model="nobody")
    assert (caught.value.code, caught.value.type) == ("unknown_model", "invalid_request_error")
    two = [{"type": "input_image", "image_url": in_base64(photo(), uri=True)}] * 2
    for given, told in (("a text alone", "0 images"), ([{"role": "user", "content": two}], "2 images")):
        with pytest.raises(openai.BadRequestError, match=told):
            client.decisions.create(model="digits", input=given, questions=[question])
    with pytest.raises(openai.UnprocessableEntityError, match="questions"):
        client.decisions.create(model="digits", input="x", questions=[])


def test_models(client, runs):
    assert [model.id for model in client.models.list()] == sorted(runs)
    assert client.models.retrieve("digits").id == "digits"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
