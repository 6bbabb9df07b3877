"""The table search on every kind of table: what moves is the scores, the text, the images or both; all rows or some."""

import numpy as np
import pytest

from engine import search
from engine.core import Feedback, Outputs
from engine.objectives import cross_entropy

DIM, IMAGES, CLASSES, WIDTH, SCALE = 12, 40, 4, 8, 8.0
LABELS = np.arange(IMAGES) % CLASSES
KINDS = ("text", "image", "both", "scores")


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def answer(kind, thetas, rows):
    """A smooth map from theta to features: what does not move keeps an axis of 1. Scores come of text that moves."""
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, 20])
@pytest.mark.parametrize("anchor", [0.0, 0.2])
def test_it_lowers_the_loss_on_all_images(kind, batch, anchor):
    run = search.make("sketch", {"k": 4, "anchor": anchor}).start(DIM, 200, 1)
    rounds(run, kind, 0, 16, batch)
    template = plain(kind, np.zeros(DIM, np.float32))
    assert plain(kind, run.recommend()) < (0.95 if kind == "image" else 0.85) * template


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [None, 20])
def test_resumes_to_the_same_bits(kind, batch):
    made = search.make("sketch", {"k": 4, "anchor": 0.2})
    asked = rounds(made.start(DIM, 200, 1), kind, 0, 9, batch)
    for stop in (1, 2, 5):
        begun, resumed = made.start(DIM, 200, 1), made.start(DIM, 200, 1)
        rounds(begun, kind, 0, stop, batch)
        resumed.load_state_dict(begun.state_dict())
        assert [t.tobytes() for t in rounds(resumed, kind, stop, 9, batch)] == [t.tobytes() for t in asked[stop:]]


def test_text_features_hold_for_other_rows_and_nothing_is_asked_twice():
    """Text alone: theta is asked at the start only. Images and scores: in every round, once rows have changed."""
    again = {}
    for kind in KINDS:
        run = search.make("sketch", {"k": 4, "anchor": 0.0}).start(DIM, 200, 1)
        rounds(run, kind, 0, 3, 20)
        theta = run.recommend()
        again[kind] = any(np.array_equal(theta, other) for other in run.ask(20))
    assert again == {"text": False, "image": True, "both": True, "scores": True}
