"""Training can be remade: the same bits from the same recipe, and a loss that falls."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from engine.errors import RecipeError
from miniature import captions, models, pretrain

RECIPE = pretrain.Recipe(model="resnet", steps=30, batch=64, warmup=5, blocks=2, block=512)


def run(recipe, steps):
    training = pretrain.begin(recipe)
    return training, [pretrain.step(training) for _ in range(steps)]


@pytest.fixture(scope="module")
def trained():
    return run(RECIPE, 30)


def test_loss_is_finite_and_falls(trained):
    total = [entry["contrast"] + entry["attributes"] for entry in trained[1]]
    assert np.isfinite(total).all()
    assert np.mean(total[-5:]) < np.mean(total[:5]) - 0.3


def test_same_recipe_same_bits(trained):
    again, losses = run(RECIPE, 4)
    assert losses == trained[1][:4]
    other, _ = run(RECIPE, 4)
    state = other.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())


def test_tokens_are_open_clips_own(trained):
    training, _ = trained
    images, scenes, _ = training.blocks[0]
    texts = captions.say(np.random.default_rng(0), captions.claim(np.random.default_rng(0), scenes))
    rows = pretrain.tokenize(texts, training)
    expected = open_clip.SimpleTokenizer(context_length=32)(texts)
    assert torch.equal(torch.tensor(training.vocabulary)[rows], expected)
    training.model.eval()
    with torch.no_grad():
        short, full = pretrain.read(training.model, rows[:32]), training.model.encode_text(rows[:32])
    assert torch.allclose(short, full, atol=1e-5)


def test_a_saved_file_opens_with_the_same_features(trained, tmp_path):
    training, losses = trained
    training.model.eval()
    pretrain.save(training, tmp_path / "tiny.safetensors", losses[-1], {})
    loaded = models.open_file("resnet", tmp_path / "tiny.safetensors")
    assert loaded.seed == RECIPE.seed and loaded.vocabulary == frozenset(training.vocabulary)
    images, _, _ = training.blocks[0]
    text = ["a photo of a digit seven.", "three red stars on a blue background"]
    with torch.no_grad():
        expected = training.model.encode_image(pretrain.normalise(images[:8]), normalize=True)
        assert torch.allclose(
            loaded.model.encode_image(pretrain.normalise(images[:8]), normalize=True), expected, atol=5e-3
        )
        expected = training.model.encode_text(pretrain.tokenize(text, training), normalize=True)
        assert torch.allclose(loaded.model.encode_text(loaded.tokenizer(text), normalize=True), expected, atol=5e-3)


def test_goes_on_from_a_file_and_learns_from_a_teacher(trained, tmp_path):
    training, losses = trained
    pretrain.save(training, tmp_path / "tiny.safetensors", losses[-1], {})
    recipe = replace(RECIPE, teacher="resnet", start=str(tmp_path / "tiny.safetensors"), block=64)
    again, further = run(recipe, 3)
    assert "teacher" in again.heads and again.blocks[0][2].shape == (64, models.EMBED_DIM)
    assert further[0]["contrast"] < trained[1][0]["contrast"]


def test_unknown_architecture_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'resnet'"):
        pretrain.begin(pretrain.Recipe(model="resnett"))
