"""Prompts in words: slots, the pool, theta = 0."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from engine.errors import RecipeError, RefusedError
from engine.prompts import make_prompt
from engine.prompts.template_list import TEMPLATES
from engine.protocols import BoxSpec


def spec(template="a photo of  a {}.", accepts=("words",)):
    return BoxSpec(
        uri="test:", gives=frozenset({"labels"}), accepts=frozenset(accepts), classes=("a", "b"), template=template,
        image_size=8,
    )  # fmt: skip


def test_theta_zero_is_the_template_letter_for_letter():
    prompt = make_prompt("words", spec())
    decoded = prompt.decode(np.zeros((2, prompt.space.dim), np.float32))
    assert decoded.words == ("a photo of  a {}.",) * 2 and decoded.needs() == {"words"} and decoded.context is None


@pytest.mark.parametrize("template", ["a photo of a {}.", "{}", "look: {} seen from above"])
def test_the_pool_decodes_to_the_templates(template):
    prompt = make_prompt("words", spec(template))
    assert prompt.decode(prompt.pool).words == tuple(dict.fromkeys((template, *TEMPLATES)))
    assert not prompt.pool[0].any() and prompt.pool.shape[1] == prompt.space.dim


def test_any_theta_is_a_sentence_with_one_name():
    prompt = pickle.loads(pickle.dumps(make_prompt("words", spec())))
    thetas = np.random.default_rng(0).normal(0, 50, (40, prompt.space.dim)).astype(np.float32)
    sentences = prompt.decode(thetas).words
    assert all(sentence.count("{}") == 1 and sentence.format("x") for sentence in sentences)
    assert sentences == tuple(prompt.decode(theta[None]).words[0] for theta in thetas)
    known = {word for template in TEMPLATES for word in template.split()}
    assert all(word in known or word.startswith("{}") for sentence in sentences for word in sentence.split())


def test_templates_of_ones_own_and_what_is_refused():
    prompt = make_prompt("words", spec(), options={"templates": "the {}!|my {}"})
    assert prompt.decode(prompt.pool).words[1:] == ("the {}!", "my {}")
    with pytest.raises(RecipeError, match="exactly one"):
        make_prompt("words", spec(), options={"templates": "the {} {}"})
    with pytest.raises(RecipeError, match="no subspaces"):
        make_prompt("words", spec(), subspace="random:3")
    with pytest.raises(RefusedError, match="not words"):
        make_prompt("words", spec(accepts=("context",)))
    with pytest.raises(ValueError, match="wanted"):
        prompt.decode(np.zeros((1, 2), np.float32))
