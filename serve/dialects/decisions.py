"""`POST /v1/decisions`: typed questions about one image, a probability for every option, in OpenAI's form.

Options that are classes of the artifact get its tuned probabilities: of some of its classes, those of its answer,
divided by their sum. All other options are sentences, and the frozen model divides its own probability among them:

- a `choice` or a `score` has a sentence for each option: its description, else its value in the instructions where
  they have a `{}`, else its value in the artifact's template;
- a `predicate` whose instructions are a class gets that class's tuned probability. Any other statement is a sentence
  itself, against the artifact's template with nothing in it ("a photo of a."). Such a probability is the frozen
  model's and not calibrated; a choice between a statement and its opposite says more.

The image is encoded once for all questions, and their sentences as one list, which the server keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter, Response
from scipy.special import softmax

from engine.protocols import Array
from serve.answering import ZERO_SHOT, Answer, Answering, Ask, Refusal
from serve.dialects.asking import DECLARED, tell
from serve.dialects.decision_schema import (
    AnyAnswer,
    AnyQuestion,
    Choice,
    ChoiceAnswer,
    Decide,
    Decision,
    LevelProbability,
    OptionProbability,
    Predicate,
    PredicateAnswer,
    RefusalAnswer,
    ScoreAnswer,
)
from serve.dialects.error_forms import responses
from serve.payload import from_base64
from serve.refusals import Refused, refuse
from serve.routes import Asked
from serve.schema import MOST_LABELS, OpenAIErrorReply, Version

router = APIRouter(tags=["openai"])

LONGEST = 1_000
"""Characters of a sentence."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a question divides probability among."""

    labels: tuple[str, ...]
    """Classes of the artifact, or sentences. Of a predicate the first is the statement."""
    tuned: bool
    """They are classes."""


@router.post("/v1/decisions", operation_id="decide", responses={**responses(OpenAIErrorReply), **DECLARED})
async def decide(given: Decide, response: Response, answering: Asked) -> Decision:
    """Answer questions about one image. A question that cannot be answered has a refusal in its place."""
    if len(given.images) != 1:
        raise refuse("bad_request", f"the input has {len(given.images)} images; send one, as a part input_image")
    image = from_base64(given.images[0])
    if isinstance(image, Refusal):
        raise Refused(image)
    about = await answering.about(given.model)
    if isinstance(about, Refusal):
        raise Refused(about)
    plans = _within(MOST_LABELS, [options_of(question, about) for question in given.questions])
    distributions, answers = await _distributions(answering, image, given.model, about, plans)
    tell(response, answers)
    written = [_written(question, found) for question, found in zip(given.questions, distributions, strict=True)]
    return Decision(answers=written, model=_artifact(given.model, about))


def options_of(question: AnyQuestion, about: Version) -> Options | str:
    """The options of a question, or why it cannot be answered."""
    words = question.words
    if words is None:
        return "only text is read in instructions; put the image into the input"
    if isinstance(question, Predicate):
        if words in about.classes:
            return Options((words,), tuned=True)
        empty = " ".join(about.template.replace("{}", " ").split()).replace(" .", ".")
        return _sentences((words, empty or "a photo."))
    if isinstance(question, Choice):
        told = [(option.value, option.description) for option in question.choices]
    else:
        told = [(level.label, level.description) for level in question.levels]
    values = tuple(value for value, _ in told)
    if len({(type(value), value) for value in values}) < len(values):
        return "two options are the same; send each once"
    if set(values) <= set(about.classes):
        return Options(tuple(str(value) for value in values), tuned=True)
    if any(isinstance(value, bool) and description is None for value, description in told):
        return "true and false say nothing of an image; give each a description"
    template = words if words.count("{}") == 1 else about.template
    return _sentences(tuple(description or template.replace("{}", str(value)) for value, description in told))


def _sentences(labels: tuple[str, ...]) -> Options | str:
    if not all(label.strip() and len(label) <= LONGEST for label in labels):
        return f"a sentence is empty or longer than {LONGEST} characters; send short ones"
    if len(set(labels)) < len(labels):
        return "two options are the same sentence; describe them differently"
    return Options(labels, tuned=False)


def _within(most: int, plans: Sequence[Options | str]) -> list[Options | str]:
    """Refuse the questions whose sentences would be too many."""
    seen: set[str] = set()
    kept: list[Options | str] = []
    for plan in plans:
        if isinstance(plan, Options) and not plan.tuned:
            if len(seen | set(plan.labels)) > most:
                plan = f"a request may have {most} different sentences; send this question in another"
            else:
                seen |= set(plan.labels)
        kept.append(plan)
    return kept


async def _distributions(
    answering: Answering, image: bytes, model: str, about: Version, plans: Sequence[Options | str]
) -> tuple[list[Array | str], list[Answer]]:
    """Probabilities of each question's options, or why there are none; and the answers that they are from.

    Raises:
        Refused: The image cannot be answered at all.
    """
    open_plans = [plan for plan in plans if isinstance(plan, Options) and not plan.tuned]
    sentences = tuple(dict.fromkeys(label for plan in open_plans for label in plan.labels))
    asks = [_bare(model, sentences)] if open_plans else []
    if any(isinstance(plan, Options) and plan.tuned for plan in plans) or not asks:
        asks.append(Ask(artifact=_artifact(model, about)))
    answers = _answers((await answering.ask([image], asks))[0])
    tuned, free = answers[-1], answers[:1] * len(open_plans)
    if len(open_plans) > 1 and isinstance(answers[0], Refusal):
        # A sentence cannot be read. Whose it is shows when they are asked apart, at the price of a second encode.
        free = _answers((await answering.ask([image], [_bare(model, plan.labels) for plan in open_plans]))[0])
    told = iter(free)
    distributions: list[Array | str] = []
    for plan in plans:
        if isinstance(plan, str):
            distributions.append(plan)
        else:
            distributions.append(_distribution(plan, tuned if plan.tuned else next(told)))
    return distributions, [answer for answer in (*answers, *free) if isinstance(answer, Answer)]


def _bare(model: str, sentences: tuple[str, ...]) -> Ask:
    """The frozen model's own answer to sentences."""
    return Ask(artifact=f"{model.partition('@')[0]}@{ZERO_SHOT}", labels=sentences, template="{}")


def _artifact(model: str, about: Version) -> str:
    """The version that was drawn, or the bare template that was asked for."""
    return model if model.endswith("@" + ZERO_SHOT) else f"{model.partition('@')[0]}@{about.version}"


def _answers(outcomes: Sequence[Answer | Refusal]) -> list[Answer | Refusal]:
    """The outcomes. Raises Refused where it is not the questions' fault that there are no answers."""
    for outcome in outcomes:
        if isinstance(outcome, Refusal) and outcome.code != "bad_request":
            raise Refused(outcome)
    return list(outcomes)


def _distribution(plan: Options, answer: Answer | Refusal) -> Array | str:
    """`(options,)` float64."""
    if isinstance(answer, Refusal):
        return answer.message
    places = {label: place for place, label in enumerate(answer.classes)}
    rows = [places[label] for label in plan.labels]
    if not plan.tuned:
        assert answer.scores is not None, "a box that is asked with other sentences gives its features"
        return softmax(answer.scores[rows].astype(np.float64))
    probabilities = answer.probabilities[rows]
    if not np.isfinite(probabilities).all():
        return "this model tells labels alone; ask POST /v1/models/NAME/answers for them"
    if len(rows) in (1, len(places)):
        return probabilities
    total = probabilities.sum()
    return probabilities / total if total > 0 else "the model gives none of these classes any probability"


def _written(question: AnyQuestion, found: Array | str) -> AnyAnswer:
    if isinstance(found, str):
        return RefusalAnswer(name=question.name, reason=found)
    probabilities = found.tolist()
    if isinstance(question, Predicate):
        return PredicateAnswer(name=question.name, probability=probabilities[0])
    if isinstance(question, Choice):
        options = [
            OptionProbability(value=option.value, probability=probability)
            for option, probability in zip(question.choices, probabilities, strict=True)
        ]
        best = max(options, key=lambda option: option.probability)
        return ChoiceAnswer(name=question.name, choice=best.value, probabilities=options, confidence=best.probability)
    levels = [
        LevelProbability(value=value, label=level.label, probability=probability)
        for value, (level, probability) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    mean = sum(level.value * level.probability for level in levels)
    return ScoreAnswer(name=question.name, score=mean, probabilities=levels, confidence=max(probabilities))
