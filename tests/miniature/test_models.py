"""The shipped files are the ones this version names, small, readable, and open_clip's own once exported."""

import hashlib

import numpy as np
import open_clip
import pytest
import torch

from engine.errors import BoxError, RecipeError
from miniature import captions, models, pretrain, render, tasks


@pytest.mark.parametrize("name", models.HASHES)
def test_shipped_file(name):
    loaded = models.load(name)
    data = (models._FOLDER / f"{name}.safetensors").read_bytes()
    assert loaded.weights_hash == models.HASHES[name] == hashlib.sha256(data).hexdigest()
    assert len(data) < 8e6
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    images, _ = render.render(1, 0, 4)
    image = loaded.model.encode_image(pretrain.normalise(images))
    text = loaded.model.encode_text(loaded.tokenizer(["a photo of a red circle."]))
    assert image.shape == (4, models.EMBED_DIM) and text.shape == (1, models.EMBED_DIM)
    assert image.dtype == text.dtype == torch.float32
    assert torch.isfinite(image).all() and torch.isfinite(text).all()


@pytest.mark.parametrize("name", models.HASHES)
def test_vocabulary_covers_captions_and_tasks(name):
    loaded = models.load(name)
    texts = list(captions.words())
    for task in map(tasks.load, tasks.TASKS):
        texts += [task.template.format(label) for label in task.classes]
    assert {token for text in texts for token in loaded.tokenizer.encode(text)} <= loaded.vocabulary
    norms = loaded.model.token_embedding.weight.norm(dim=1)
    assert (norms[sorted(loaded.vocabulary - {0})] > 0).all()
    assert int((norms > 0).sum()) <= len(loaded.vocabulary)


@pytest.mark.parametrize("name", models.HASHES)
def test_model_knows_clean_renders(name):
    """A floor well under the recorded accuracies: catches a broken load, not a worse training."""
    loaded = models.load(name)
    images, scenes = render.render(77, 0, 200, kinds=(1.0, 0.0, 0.0))
    text = loaded.tokenizer([f"a photo of an object on a {color} background." for color in render.COLORS])
    with torch.no_grad():
        image = loaded.model.encode_image(pretrain.normalise(images), normalize=True)
        answers = (image @ loaded.model.encode_text(text, normalize=True).T).argmax(1).numpy()
    assert (answers == scenes.background).mean() > 0.85


def test_unknown_name_is_refused():
    with pytest.raises(RecipeError, match="did you mean 'resnet'"):
        models.load("resnet5")


def test_another_file_is_refused(monkeypatch):
    models.load.cache_clear()
    monkeypatch.setitem(models.HASHES, "resnet", "0" * 64)
    with pytest.raises(BoxError, match="reinstall"):
        models.load("resnet")


@pytest.mark.parametrize("name", models.HASHES)
def test_export_opens_in_open_clip_with_identical_features(name, tmp_path):
    folder = models.export(name, tmp_path / name)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    loaded = models.load(name)
    images, _ = render.render(1, 0, 4)
    texts = ["a photo of a digit seven.", "three red stars on a blue background"]
    from PIL import Image

    pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
    assert np.allclose(pixels, pretrain.normalise(images), atol=1e-6)
    with torch.no_grad():
        assert torch.equal(tokenizer(texts), loaded.tokenizer(texts))
        # Equal weights; the products may round differently with where in memory they lie.
        text, expected = model.encode_text(tokenizer(texts)), loaded.model.encode_text(tokenizer(texts))
        assert torch.allclose(text, expected, rtol=0, atol=1e-5)
        image, expected = model.encode_image(pixels), loaded.model.encode_image(pixels)
        assert torch.allclose(image, expected, rtol=0, atol=1e-5)
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
