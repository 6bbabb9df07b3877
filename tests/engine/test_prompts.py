"""Prompts: the contract of every parametrization, and what is particular to text contexts and subspaces."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RecipeError, RefusedError
from engine.prompts import PROMPTS, make_prompt
from engine.prompts.subspaces import random_projection
from engine.prompts.text import TextContext
from engine.protocols import BoxSpec, TextSpec
from engine.search_space import Space

M, W = 4, 6
TEMPLATE = np.random.default_rng(0).normal(size=(M, W)).astype(np.float32)
SPEC = BoxSpec(
    uri="test:",
    gives=frozenset({"features"}),
    accepts=frozenset({"context", "pixels"}),
    classes=("a", "b"),
    template="one two three four {}",
    image_size=8,
    text=TextSpec(context=TEMPLATE, sigma=0.25),
)

every_prompt = pytest.mark.parametrize("name", [name for name in PROMPTS if name != "words"])


def parts(prompts) -> np.ndarray:
    """`(P, ...)` all that a prompt decodes to, flat."""
    arrays = [getattr(prompts, name) for name in ("context", "pixels")]
    return np.concatenate([array.reshape(len(prompts), -1) for array in arrays if array is not None], 1)


every_subspace = pytest.mark.parametrize("subspace", ["full", "random:3"])


def test_a_prompt_states_its_space():
    def space(name, **options):
        return make_prompt(name, SPEC, options=options).space

    text, frame = frozenset({"text"}), 3 * (8 * 8 - 6 * 6)
    assert space("text") == Space(dim=M * W, unit=0.25, moves=text)
    assert space("text", per_class=True) == Space(dim=2 * M * W, parts=2, unit=0.25, moves=text)
    assert space("pixels", width=1) == Space(dim=frame, moves=frozenset({"image"}))
    assert space("text+pixels", width=1) == Space(dim=M * W + frame, moves=frozenset({"text", "image"}))


@every_prompt
@every_subspace
def test_theta_zero_is_the_template_to_the_bit(name, subspace):
    prompt = make_prompt(name, SPEC, subspace=subspace)
    decoded = prompt.decode(np.zeros((2, prompt.space.dim), np.float32))
    assert len(decoded) == 2 and decoded.needs() <= SPEC.accepts
    assert decoded.needs() == {{"text": "context"}.get(part, part) for part in name.split("+")}
    assert parts(decoded).dtype == np.float32
    for context in () if decoded.context is None else decoded.context:
        np.testing.assert_array_equal(context, TEMPLATE)
    assert decoded.pixels is None or not decoded.pixels.any()


@every_prompt
@every_subspace
def test_decoding_is_pure_and_the_same_alone_or_in_a_stack(name, subspace):
    prompt = make_prompt(name, SPEC, subspace=subspace)
    thetas = np.random.default_rng(1).normal(size=(5, prompt.space.dim)).astype(np.float32)
    kept = thetas.copy()
    stack = parts(prompt.decode(thetas))
    np.testing.assert_array_equal(thetas, kept)
    np.testing.assert_array_equal(stack, parts(prompt.decode(thetas)))
    for row in range(5):
        np.testing.assert_array_equal(parts(prompt.decode(thetas[row : row + 1]))[0], stack[row])


@every_prompt
@every_subspace
def test_survives_pickle_and_is_the_same_in_another_process(name, subspace):
    prompt = make_prompt(name, SPEC, subspace=subspace, seed=7)
    thetas = np.ones((1, prompt.space.dim), np.float32)
    expected = parts(prompt.decode(thetas))
    np.testing.assert_array_equal(parts(pickle.loads(pickle.dumps(prompt)).decode(thetas)), expected)
    again = make_prompt(name, SPEC, subspace=subspace, seed=7)
    np.testing.assert_array_equal(parts(again.decode(thetas)), expected)


@every_prompt
@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 1, M * W)])
def test_a_wrong_shape_names_both_shapes(name, shape):
    prompt = make_prompt(name, SPEC)
    with pytest.raises(ValueError, match=rf"{shape}.*P, {prompt.space.dim}".replace("(", r"\(").replace(")", r"\)")):
        prompt.decode(np.zeros(shape, np.float32))


def test_one_unit_of_theta_is_one_sigma():
    prompt = make_prompt("text", SPEC)
    theta = np.arange(M * W, dtype=np.float32)
    moved = prompt.decode(theta[None]).context[0] - TEMPLATE
    np.testing.assert_allclose(moved, 0.25 * theta.reshape(M, W), atol=1e-6)


def test_a_projection_moves_the_context_as_far_as_no_projection():
    text = TextSpec(context=np.zeros((16, 512), np.float32), sigma=0.02)
    spec = BoxSpec(**{**{f: getattr(SPEC, f) for f in SPEC.__dataclass_fields__}, "text": text})
    for subspace in ("full", "random:20", "random:400"):
        prompt = make_prompt("text", spec, subspace=subspace)
        thetas = np.random.default_rng(0).normal(size=(8, prompt.space.dim)).astype(np.float32)
        assert np.sqrt(np.mean(prompt.decode(thetas).context ** 2)) == pytest.approx(0.02, rel=0.25)


def test_projections_depend_on_the_seed_alone():
    np.testing.assert_array_equal(random_projection(3, 24, seed=5), random_projection(3, 24, seed=5))
    assert np.abs(random_projection(3, 24, seed=5) - random_projection(3, 24, seed=6)).max() > 0.1
    assert random_projection(3, 24, seed=5).dtype == np.float32


@given(tokens=st.integers(1, 11))
def test_another_number_of_tokens_keeps_the_last_words_last(tokens):
    origin = make_prompt("text", SPEC, tokens=tokens).decode(np.zeros((1, tokens * W), np.float32)).context[0]
    assert origin.shape == (tokens, W)
    for back in range(1, tokens + 1):
        np.testing.assert_array_equal(origin[-back], TEMPLATE[-1 - (back - 1) % M])


def test_impossible_settings_are_refused():
    with pytest.raises(RecipeError, match="did you mean 'text'"):
        make_prompt("texts", SPEC)
    with pytest.raises(RecipeError, match="nowhere"):
        make_prompt("nowhere:prompt", SPEC)
    with pytest.raises(RecipeError, match="tokens=0"):
        make_prompt("text", SPEC, tokens=0)
    for subspace in ("random", "random:0", f"random:{M * W + 1}", "random:x", "randon:3", "full:3", "random:-1"):
        with pytest.raises(RecipeError, match=subspace):
            make_prompt("text", SPEC, subspace=subspace)


def test_a_box_that_takes_no_context_is_refused():
    spec = BoxSpec(
        uri="words-only:",
        gives=frozenset({"labels"}),
        accepts=frozenset({"words"}),
        classes=("a",),
        template="{}",
        image_size=8,
    )
    with pytest.raises(RefusedError, match="words-only.*accepts words"):
        make_prompt("text", spec)


def test_a_parametrization_of_ones_own():
    made = make_prompt("engine.prompts.text:text_context", SPEC)
    assert isinstance(made, TextContext) and made.space.dim == M * W


@every_subspace
def test_a_context_per_class_is_as_many_contexts(subspace):
    """Each part of theta decodes as it would by itself, and theta = 0 to the template for every class."""
    one, own = (make_prompt("text", SPEC, subspace=subspace, options={"per_class": each}) for each in (False, True))
    assert own.space.dim == len(SPEC.classes) * one.space.dim
    thetas = np.random.default_rng(5).normal(size=(3, own.space.dim)).astype(np.float32)
    found = own.decode(thetas).context
    assert found.shape == (3, len(SPEC.classes), M, W)
    for number, part in enumerate(np.split(thetas, len(SPEC.classes), axis=1)):
        np.testing.assert_array_equal(found[:, number], one.decode(part).context)
    np.testing.assert_array_equal(own.decode(np.zeros((1, own.space.dim), np.float32)).context[0], [TEMPLATE, TEMPLATE])
    with pytest.raises(RecipeError, match="per_class"):
        make_prompt("pixels", SPEC, options={"per_class": True})
