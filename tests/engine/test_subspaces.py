"""Subspaces of text contexts: shares, the vocabulary's components, ZIP's low-rank map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.errors import RecipeError, RefusedError
from engine.prompts import make_prompt
from engine.prompts.subspaces import low_rank, vocabulary_basis
from engine.protocols import BoxSpec, TextSpec

M, W, V = 4, 24, 40
RANDOM = np.random.default_rng(0)
VOCABULARY = (RANDOM.normal(size=(V, W)) * np.linspace(2.0, 0.1, W)).astype(np.float32)
SPEC = BoxSpec(
    uri="test:", gives=frozenset({"features"}), accepts=frozenset({"context"}), classes=("a", "b"),
    template="one two three four {}", image_size=8,
    text=TextSpec(context=VOCABULARY[:M], sigma=0.25, vocabulary=VOCABULARY),
)  # fmt: skip
EVERY = ["full", "random:7", "random:1/4", "vocabulary:5", "low-rank:3"]


def moved(prompt, thetas):
    """`(P, M, W)`: by how many units each entry of the context moved."""
    return (prompt.decode(thetas.astype(np.float32)).context - VOCABULARY[:M]) / 0.25


@pytest.mark.parametrize("subspace", EVERY)
def test_zero_is_the_template_to_the_bit_and_stacks_do_not_matter(subspace):
    prompt = make_prompt("text", SPEC, subspace=subspace)
    np.testing.assert_array_equal(prompt.decode(np.zeros((1, prompt.space.dim), np.float32)).context[0], VOCABULARY[:M])
    thetas = RANDOM.normal(size=(3, prompt.space.dim)).astype(np.float32)
    stack = prompt.decode(thetas).context
    for row in range(3):
        np.testing.assert_array_equal(prompt.decode(thetas[row : row + 1]).context[0], stack[row])
    again = make_prompt("text", SPEC, subspace=subspace)
    np.testing.assert_array_equal(again.decode(thetas).context, stack)


@pytest.mark.parametrize(("subspace", "dim"), [("random:1/4", M * W // 4), ("vocabulary:5", 5 * M), ("low-rank:3", 23)])
def test_dimensions(subspace, dim):
    assert make_prompt("text", SPEC, subspace=subspace).space.dim == dim


@pytest.mark.parametrize("subspace", ["random:1/4", "vocabulary:5"])
def test_unit_entries_move_by_one_unit(subspace):
    prompt = make_prompt("text", SPEC, subspace=subspace)
    thetas = RANDOM.normal(size=(200, prompt.space.dim))
    assert np.sqrt((moved(prompt, thetas) ** 2).mean()) == pytest.approx(1.0, abs=0.1)


def test_the_vocabularys_components_are_principal():
    basis = vocabulary_basis(5, VOCABULARY, 2) / np.sqrt(W / 5)
    theirs = np.linalg.svd(VOCABULARY - VOCABULARY.mean(0))[2][:5]
    np.testing.assert_allclose(np.abs(basis[:5, :W] @ theirs.T), np.eye(5), atol=1e-4)
    assert not basis[:5, W:].any()
    np.testing.assert_array_equal(basis[:5, :W], basis[5:, W:])


def test_zips_map_is_its_equation():
    made = low_rank(rank=3, tokens=M, width=512, seed=1)
    p = 62
    assert made.start.shape == (p, 3) and made.dim == M * 3 + 3 + p * 3 + p
    theta = RANDOM.normal(size=made.dim)
    U, s, right, v = np.split(theta, np.cumsum([M * 3, 3, p * 3]))
    rows = U.reshape(M, 3) @ np.diag(1 + s) @ (made.start + right.reshape(p, 3)).T + v
    expected = [rows[i] @ made.projections[i] for i in range(M)]
    np.testing.assert_allclose(made.moves(theta).reshape(M, 512), expected, rtol=1e-4, atol=1e-4)
    assert low_rank(rank=5, tokens=8, width=512, seed=1).dim == 417, "the paper's"
    shared = np.zeros(made.dim)
    shared[-p:] = RANDOM.normal(size=p)
    assert np.abs(made.moves(shared).reshape(M, 512)).min(1).max() > 0, "v moves every token"


@pytest.mark.parametrize(
    "wrong",
    ["randm:3", "low-rank", "low-rank:0", "vocabulary:99", "random:5/4", "random:1/0", "random:a", "random:1/2/3"],
)
def test_impossible_subspaces_are_refused(wrong):
    with pytest.raises(RecipeError, match=wrong):
        make_prompt("text", SPEC, subspace=wrong)


def test_a_box_without_vocabulary_is_refused():
    bare = replace(SPEC, text=replace(SPEC.text, vocabulary=None))
    with pytest.raises(RefusedError, match="vocabulary"):
        make_prompt("text", bare, subspace="vocabulary:5")
