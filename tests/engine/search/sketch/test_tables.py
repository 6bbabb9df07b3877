"""The table search on every kind of table: what moves is the scores, the text, the images or both, by a theta for all
classes or a theta for each; all rows or some."""

import numpy as np
import pytest

from engine import search
from engine.errors import RecipeError, RefusedError
from engine.objectives import cross_entropy
from engine.protocols import Feedback, Outputs
from engine.search_space import Space

DIM, IMAGES, CLASSES, WIDTH, SCALE = 12, 40, 4, 8, 8.0
LABELS = np.arange(IMAGES) % CLASSES
KINDS = ("text", "image", "both", "scores")
OWN = ("own text", "own scores")
"""Theta is a part for each class, which moves the answers of that class alone."""


def search_of(kind, **options):
    return search.make("sketch", {"k": 4, **options}).start(space_of(kind), 200, 1)


def space_of(kind):
    """By parts where the kind has them."""
    parts = CLASSES if kind in OWN else 1
    moves = {"image": {"image"}, "both": {"text", "image"}}.get(kind, {"text"})
    return Space(dim=DIM * parts, parts=parts, moves=frozenset(moves))


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def answer(kind, thetas, rows):
    """A smooth map from theta to features: what does not move keeps an axis of 1. Scores come of text that moves."""
    if kind in OWN:
        of_parts = [answer("text", part, rows).text for part in np.split(thetas, CLASSES, axis=1)]
        texts = np.stack([part[:, number] for number, part in enumerate(of_parts)], axis=1)
        outputs = Outputs(text=texts, image=answer("text", thetas[:, :DIM], rows).image, scale=SCALE)
        return Outputs(scores=outputs.logits()) if kind == "own scores" else outputs
    random = np.random.default_rng(0)
    text, image = random.standard_normal((CLASSES, WIDTH)), random.standard_normal((IMAGES, WIDTH))
    image += 1.5 * text[LABELS] @ np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]  # the template is misled
    into, turn, shift = (random.standard_normal(s) for s in ((DIM, 16), (16, CLASSES * WIDTH), (16, WIDTH)))
    hidden = np.tanh(0.3 * thetas.astype(np.float64) @ into)
    texts, images = text[None], image[None]
    if kind != "image":
        texts = text + (hidden @ turn).reshape(-1, CLASSES, WIDTH) / 2
    if kind in ("image", "both"):
        images = image + (hidden @ shift)[:, None]
    outputs = Outputs(text=unit(texts), image=unit(images)[:, rows], scale=SCALE)
    return Outputs(scores=outputs.logits()) if kind == "scores" else outputs


def plain(kind, theta):
    """Cross-entropy on all images."""
    return float(cross_entropy(answer(kind, theta[None], np.arange(IMAGES)), LABELS)[0])


def rounds(run, kind, first, last, batch):
    asked = []
    for number in range(first, last):
        rows = np.arange(IMAGES)
        if batch is not None:
            rows = np.sort(np.random.default_rng(number).choice(IMAGES, batch, replace=False))
        thetas = run.ask(20)
        outputs = answer(kind, thetas, rows)
        run.tell(thetas, Feedback(losses=cross_entropy(outputs, LABELS[rows]), outputs=outputs, labels=LABELS[rows]))
        asked.append(thetas)
    return asked


@pytest.mark.parametrize("kind", KINDS + OWN)
@pytest.mark.parametrize("batch", [None, 20])
def test_it_lowers_the_loss_on_all_images(kind, batch):
    run = search_of(kind)
    template = plain(kind, run.recommend())
    rounds(run, kind, 0, 16, batch)
    assert plain(kind, run.recommend()) < (0.95 if kind == "image" else 0.85) * template


@pytest.mark.parametrize("kind", KINDS + OWN)
@pytest.mark.parametrize("batch", [None, 20])
def test_resumes_to_the_same_bits(kind, batch):
    asked = rounds(search_of(kind), kind, 0, 9, batch)
    for stop in (1, 2, 5):
        begun, resumed = search_of(kind), search_of(kind)
        rounds(begun, kind, 0, stop, batch)
        resumed.load_state_dict(begun.state_dict())
        assert [t.tobytes() for t in rounds(resumed, kind, stop, 9, batch)] == [t.tobytes() for t in asked[stop:]]


def test_text_features_hold_for_other_rows_and_nothing_is_asked_twice():
    """Text alone: theta is asked at the start only. Images and scores: in every round, once rows have changed."""
    again = {}
    for kind in KINDS:
        run = search_of(kind)
        rounds(run, kind, 0, 3, 20)
        theta = run.recommend()
        again[kind] = any(np.array_equal(theta, other) for other in run.ask(20))
    assert again == {"text": False, "image": True, "both": True, "scores": True}


@pytest.mark.parametrize("kind", OWN)
def test_parts_are_worth_their_answers_and_coupling_holds_them_together(kind):
    """With as many evaluations a theta for each class ends lower than one for all; coupled, its parts differ less."""
    losses, apart = {}, {}
    for coupling in (0.0, 1.0):
        run = search_of(kind, coupling=coupling)
        rounds(run, kind, 0, 24, None)
        losses[coupling] = plain(kind, run.recommend())
        apart[coupling] = run.recommend().reshape(CLASSES, DIM).std(0).mean()
    shared = search_of(kind.removeprefix("own "))
    rounds(shared, kind.removeprefix("own "), 0, 24, None)
    assert losses[1.0] < 0.5 * plain("text", shared.recommend())
    assert apart[1.0] < 0.5 * apart[0.0]


def test_parts_must_be_classes():
    with pytest.raises(RecipeError, match="do not divide"):
        search.make("sketch", {"parts": 5}).start(space_of("text"), 200, 1)
    run = search.make("sketch", {"k": 4, "parts": 3}).start(space_of("text"), 200, 1)
    with pytest.raises(RefusedError, match="as many parts as there are classes"):
        rounds(run, "text", 0, 1, None)
    run = search.make("sketch", {"k": 4, "parts": CLASSES}).start(space_of("image"), 200, 1)
    with pytest.raises(RefusedError, match="as many parts as there are classes"):
        rounds(run, "image", 0, 1, None)


@pytest.mark.parametrize("kind", KINDS + OWN)
def test_a_lone_first_candidate_is_as_good_as_any(kind):
    """What moves is stated by the space: an axis of 1 does not tell."""
    run = search_of(kind)
    thetas = run.ask(1)
    outputs = answer(kind, thetas, np.arange(IMAGES))
    run.tell(thetas, Feedback(losses=cross_entropy(outputs, LABELS), outputs=outputs, labels=LABELS))
    held = {"table.scores"} if outputs.scores is not None else {f"table.{name}" for name in space_of(kind).moves}
    assert {key for key in run.state_dict() if key.startswith("table.")} == held
    template = plain(kind, run.recommend())
    rounds(run, kind, 1, 12, None)
    assert plain(kind, run.recommend()) < (0.95 if kind == "image" else 0.8) * template


def test_what_moves_by_the_space_has_to_move():
    run = search.make("sketch", {"k": 4}).start(space_of("both"), 200, 1)
    with pytest.raises(RefusedError, match="image features move"):
        rounds(run, "text", 0, 1, None)
