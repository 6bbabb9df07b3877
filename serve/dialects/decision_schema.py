"""Bodies of `POST /v1/decisions`, in OpenAI's form (its Python package, `types/decision*.py`).

Knows nothing of how questions are answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from serve.schema import Body, Reply

MOST_QUESTIONS = 400
MOST_MESSAGES = 1_000


class Part(Body):
    """What every part of a message may carry without effect."""

    prompt_cache_breakpoint: Any = None
    detail: Any = None


class TextPart(Part):
    """Text. Beside an image it has no effect: the model reads the image alone."""

    type: Literal["input_text"]
    text: str


class ImagePart(Part):
    """An image as a data URI. URLs are not fetched."""

    type: Literal["input_image"]
    image_url: str


class JsonPart(Part):
    """Data. It has no effect."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


Parts = Annotated[
    tuple[Annotated[TextPart | ImagePart | JsonPart, Field(discriminator="type")], ...],
    Field(max_length=MOST_MESSAGES),
]


class Message(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system"]
    content: str | Parts

    @property
    def images(self) -> list[str]:
        """Data URIs, as they came."""
        parts = () if isinstance(self.content, str) else self.content
        return [part.image_url for part in parts if isinstance(part, ImagePart)]


class Question(Body):
    """What every question has."""

    name: str | None = None
    instructions: str | Parts

    @property
    def words(self) -> str | None:
        """The instructions as one text; None where they hold more than text, which is not read."""
        if isinstance(self.instructions, str):
            return self.instructions
        texts = [part.text for part in self.instructions if isinstance(part, TextPart)]
        return " ".join(texts) if len(texts) == len(self.instructions) else None


class Predicate(Question):
    """How likely is a statement about the image?"""

    type: Literal["predicate"]


class Option(Body):
    """An option of a choice."""

    value: str | bool
    description: str | None = None


class Choice(Question):
    """Which option fits the image?"""

    type: Literal["choice"]
    choices: Annotated[tuple[Option, ...], Field(min_length=2, max_length=255)]


class Level(Body):
    """A level of a score."""

    label: str
    description: str | None = None


class Score(Question):
    """Where does the image stand on ordered levels?"""

    type: Literal["score"]
    levels: Annotated[tuple[Level, ...], Field(min_length=2, max_length=255)]


AnyQuestion = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class Decide(Body):
    """An image and the questions about it."""

    model: Annotated[str, Field(max_length=300)]
    """An artifact: `NAME`, `NAME@VERSION`, `NAME@latest` or `NAME@zero-shot`."""
    input: str | Annotated[tuple[Message, ...], Field(max_length=MOST_MESSAGES)]
    """Messages with one image among them."""
    questions: Annotated[tuple[AnyQuestion, ...], Field(min_length=1, max_length=MOST_QUESTIONS)]
    prompt_cache_key: Any = None
    """This and the next two have no effect."""
    prompt_cache_options: Any = None
    safety_identifier: Any = None

    @property
    def images(self) -> list[str]:
        """Data URIs, as they came."""
        messages = () if isinstance(self.input, str) else self.input
        return [image for message in messages for image in message.images]


# ---------------------------------------------------------------------------------------------------------------------
# Answers


class PredicateAnswer(Reply):
    """Of a predicate."""

    type: Literal["predicate"] = "predicate"
    name: str | None
    probability: float


class OptionProbability(Reply):
    """Of an option of a choice."""

    value: str | bool
    probability: float


class ChoiceAnswer(Reply):
    """Of a choice."""

    type: Literal["choice"] = "choice"
    name: str | None
    choice: str | bool
    probabilities: list[OptionProbability]
    confidence: float
    """The probability of the chosen option."""


class LevelProbability(Reply):
    """Of a level of a score."""

    value: int
    """Index of the level, from 0."""
    label: str
    probability: float


class ScoreAnswer(Reply):
    """Of a score."""

    type: Literal["score"] = "score"
    name: str | None
    score: float
    """Mean index of the levels, weighed by their probabilities."""
    probabilities: list[LevelProbability]
    confidence: float
    """The largest probability."""


class RefusalAnswer(Reply):
    """Of a question that cannot be answered; the others have their answers."""

    type: Literal["refusal"] = "refusal"
    name: str | None
    reason: str
    """Beyond OpenAI's form: one sentence."""


AnyAnswer = PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusalAnswer


class InputDetails(Reply):
    cache_write_tokens: int = 0
    cached_tokens: int = 0


class OutputDetails(Reply):
    reasoning_tokens: int = 0


class Usage(Reply):
    """Tokens, of which none are counted: an image is encoded once whatever is asked."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class Decision(Reply):
    """Answers in the order of the questions."""

    answers: list[AnyAnswer]
    model: str
    """NAME@VERSION that answered."""
    usage: Usage = Usage()
