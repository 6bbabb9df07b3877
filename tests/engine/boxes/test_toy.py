"""The toy box, its task, and box URIs."""

import pickle
import subprocess
import sys
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.boxes import SCHEMES, keep_only, open_box
from engine.boxes.toy import CLASSES, TEMPLATE, ToyBox, toy_task
from engine.errors import KeyholeError, RecipeError, RefusedError, TaskError
from engine.objectives import cross_entropy, zero_one
from engine.parsing import parse_uri
from engine.prompts import make_prompt
from engine.protocols import GIVES, BlackBox, Prompts, Work

ROWS = np.arange(10)


def opened(uri: str = "toy:"):
    return open_box(uri, classes=CLASSES, template=TEMPLATE)


def test_it_is_a_black_box_that_needs_no_torch():
    assert isinstance(opened(), BlackBox)
    code = "import sys, engine.boxes.toy; sys.exit(bool({'torch', 'ray', 'open_clip'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_theta_zero_answers_as_the_template_does():
    box, task = opened(), toy_task()
    staged, prompt = box.stage(task.val.source), make_prompt("text", box.spec)
    untouched = box.answer(Prompts(count=2), staged, ROWS)
    zero = box.answer(prompt.decode(np.zeros((2, prompt.space.dim), np.float32)), staged, ROWS)
    np.testing.assert_array_equal(untouched.text, zero.text)
    np.testing.assert_allclose(np.linalg.norm(zero.text, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(zero.image, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_tuning_helps(seed):
    """A few hundred steps of plain evolution on the training rows carry over to the test images."""
    box, task = opened(), toy_task(seed=seed)
    train, test = box.stage(task.train.source), box.stage(task.test.source)
    prompt, rng = make_prompt("text", box.spec), np.random.default_rng(seed)
    best, rows = np.zeros((1, prompt.space.dim), np.float32), np.arange(len(task.train))

    def loss(thetas):
        return cross_entropy(box.answer(prompt.decode(thetas), train, rows), task.train.labels)

    lowest = loss(best)[0]
    for _ in range(60):
        thetas = best + 0.3 * rng.normal(size=(8, prompt.space.dim)).astype(np.float32)
        losses = loss(thetas)
        if losses.min() < lowest:
            lowest, best = losses.min(), thetas[losses.argmin()][None]
    both = np.concatenate([np.zeros_like(best), best])
    before, after = zero_one(box.answer(prompt.decode(both), test, np.arange(len(task.test))), task.test.labels)
    assert before > 0.35 and after < before - 0.2


def test_everything_is_deterministic_and_by_reference():
    task = toy_task(seed=4)
    source = pickle.loads(pickle.dumps(task.test.source))
    for one, two in zip(task.test.source.read([5, 3]), source.read(range(6))[5:2:-2], strict=True):
        np.testing.assert_array_equal(one, two)
    assert (toy_task(seed=5).test.source.read([5])[0] != source.read([5])[0]).any()
    assert len(pickle.dumps(task)) < 20_000
    assert len(task.train) == 80 and len(task.val) == 20 and len(task.test) == 500
    train, val = (split.source.read(range(20)) for split in (task.train, task.val))
    assert not any((a == b).all() for a, b in zip(train, val, strict=True))


def test_answers_do_not_depend_on_the_other_candidates():
    box, task = opened(), toy_task()
    staged, prompt = box.stage(task.val.source), make_prompt("text", box.spec)
    thetas = np.random.default_rng(0).normal(size=(4, prompt.space.dim)).astype(np.float32)
    together = box.answer(prompt.decode(thetas), staged, ROWS).text
    for row in range(4):
        alone = box.answer(prompt.decode(thetas[row : row + 1]), staged, ROWS).text[0]
        np.testing.assert_array_equal(alone, together[row])


def test_a_context_per_class_moves_its_class_alone():
    box = opened()
    staged, own = box.stage(toy_task(seed=1).val.source), np.repeat(box.spec.text.context[None, None], len(CLASSES), 1)
    plain = box.answer(Prompts(count=1), staged, ROWS).text
    np.testing.assert_array_equal(box.answer(Prompts(count=1, context=own), staged, ROWS).text, plain)
    own[0, 2] += 0.1
    moved = box.answer(Prompts(count=1, context=own), staged, ROWS).text
    assert (moved != plain).any(-1)[0].tolist() == [number == 2 for number in range(len(CLASSES))]
    with pytest.raises(ValueError, match=r"\(P, 5, M"):
        box.answer(Prompts(count=1, context=own[:, :2]), staged, ROWS)


@pytest.mark.parametrize("kind", GIVES)
def test_a_narrowed_box_gives_one_kind_and_no_more(kind):
    whole, narrow, task = opened(), opened(f"toy:?gives={kind}"), toy_task()
    assert narrow.spec.gives == {kind}
    staged = narrow.stage(task.val.source)
    outputs = narrow.answer(Prompts(count=1), staged, ROWS)
    fields = {"features": {"text", "image"}}.get(kind, {kind})
    given = {name for name in ("labels", "topk", "scores", "text", "image") if getattr(outputs, name) is not None}
    assert given == fields
    reference = whole.answer(Prompts(count=1), staged, ROWS)
    np.testing.assert_array_equal(outputs.predictions(), reference.predictions())
    if kind in ("labels", "topk"):
        with pytest.raises(RefusedError):
            outputs.logits()
    if kind == "topk":
        classes, log_probabilities = outputs.topk
        assert classes.shape == log_probabilities.shape == (1, 10, 5) and log_probabilities.dtype == np.float32
        np.testing.assert_allclose(np.exp(log_probabilities).sum(-1), 1, rtol=1e-5)
        assert (np.diff(log_probabilities, axis=-1) <= 0).all()


def test_the_richest_of_what_is_given_is_answered():
    outputs = opened().answer(Prompts(count=1), opened().stage(toy_task().val.source), ROWS)
    assert keep_only(outputs, frozenset({"labels", "scores"})).labels is None
    assert keep_only(outputs, frozenset({"labels", "topk"})).labels is None
    assert keep_only(outputs, frozenset(GIVES)) is outputs


def test_work_is_counted_once():
    box, task = opened(), toy_task()
    staged = box.stage(task.val.source)
    box.answer(Prompts(count=3), staged, ROWS)
    assert box.work() == Work(sequences=3 * len(CLASSES), image_encodes=20)
    assert box.work() == Work()


def test_prompts_that_it_does_not_accept_are_refused():
    box = opened()
    staged = box.stage(toy_task().val.source)
    with pytest.raises(RefusedError, match="words"):
        box.answer(Prompts(count=1, words=("a {}",)), staged, ROWS)
    with pytest.raises(ValueError, match=r"\(1, 4, 3\)"):
        box.answer(Prompts(count=1, context=np.zeros((1, 4, 3), np.float32)), staged, ROWS)


# ---------------------------------------------------------------------------------------------------------------------
# URIs

words = st.text(st.characters(exclude_characters="?"), max_size=20)
options = st.dictionaries(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), max_size=4)


@given(scheme=st.text(st.characters(exclude_characters=":"), min_size=1), rest=words, query=options)
def test_what_was_written_is_parsed(scheme, rest, query):
    uri = f"{scheme}:{rest}" + (f"?{urlencode(query)}" if query else "")
    assert parse_uri(uri, "box") == (scheme, rest, query)


@given(st.text())
def test_any_text_is_parsed_or_refused_in_one_way(uri):
    try:
        scheme, rest, query = parse_uri(uri, "box")
    except RecipeError as error:
        assert repr(uri) in str(error)
    else:
        assert uri.startswith(f"{scheme}:{rest}" if ":" in uri else scheme) and all(query.values())


@given(st.text())
def test_any_text_after_toy_opens_or_is_a_users_mistake(text):
    try:
        box = opened(f"toy:{text}")
    except KeyholeError as error:
        assert error.exit_code == 2
    else:
        assert isinstance(box, ToyBox)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("toy", "scheme:name"),
        (":x", "scheme:name"),
        ("toi:", "did you mean 'toy'"),
        ("toy:big", "one toy box"),
        ("toy:?gives=score", "did you mean 'scores'"),
        ("toy:?gives=scores,", "gives="),
        ("toy:?give=scores", "did you mean 'gives'"),
        ("toy:?gives", "option 'gives'"),
        ("toy:?gives=", "option 'gives='"),
        ("toy:?gives=scores&gives=labels", "twice"),
    ],
)
def test_malformed_uris_are_refused_with_a_hint(uri, message):
    with pytest.raises(RecipeError, match=message):
        opened(uri)


@pytest.mark.parametrize("classes", [(), ("a", "a"), ("a", " ")])
def test_classes_that_cannot_be_told_apart_are_refused(classes):
    with pytest.raises(TaskError, match="classes"):
        open_box("toy:", classes=classes, template="a {}")


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_needs_one_place(template):
    with pytest.raises(TaskError, match="exactly one"):
        open_box("toy:", classes=("a",), template=template)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_an_opener_that_refuses_unknown_options(scheme):
    pytest.importorskip(SCHEMES[scheme].partition(":")[0])
    names = {"open_clip": "ViT-B-32,random", "mini": "resnet", "hf-hub": "a/b", "local-dir": ".", "toy": ""}
    with pytest.raises(RecipeError, match="nonsense"):
        opened(f"{scheme}:{names[scheme]}?nonsense=1")


def test_a_template_said_twice_is_the_template():
    box = opened()
    staged = box.stage(toy_task().val.source)
    context = box.spec.text.context
    twice = box.answer(Prompts(count=1, context=np.concatenate([context, context])[None]), staged, ROWS).text
    np.testing.assert_allclose(twice, box.answer(Prompts(count=1), staged, ROWS).text, rtol=0, atol=1e-6)
    longer = box.answer(Prompts(count=1, context=np.concatenate([2 * context[:1], context])[None]), staged, ROWS).text
    assert np.abs(longer - twice).max() > 1e-3
