"""The image tower: its fast path is the plain one, wherever the architecture allows it, and plain elsewhere."""

import logging

import open_clip
import pytest
import torch

from engine.boxes import image_tower
from engine.boxes.image_tower import ImageTower
from engine.images import Preprocess

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 32}
PREPROCESS = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))

FAST = {
    "vit": VIT,
    "one layer": VIT | {"layers": 1},
    "layer scale": VIT | {"ls_init_value": 0.3},
    "no first norm": VIT | {"no_ln_pre": True},
    "last norm after pooling": VIT | {"final_ln_after_pool": True},
    "fixed positions": VIT | {"pos_embed_type": "sin_cos_2d"},
}
PLAIN = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "average pooling": VIT | {"pool_type": "avg"},
    "attentional pooling": VIT | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "custom blocks": VIT | {"qk_norm": True},
    "timm": {"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
}


def model(vision: dict, quick_gelu: bool = False) -> torch.nn.Module:
    torch.manual_seed(1)
    made = open_clip.CLIP(16, vision, TEXT, quick_gelu=quick_gelu).eval()
    for weight in made.visual.parameters():  # so that no bias or class token is left at zero
        weight.data += 0.05 * torch.randn_like(weight)
    return made


def batch(rows: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.rand((rows + frames, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    return noise[:rows], noise[rows:] - 0.5


def reference(made: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    return made.encode_image((pixels - mean) / std, normalize=True)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("name", [*FAST, *PLAIN])
@torch.no_grad()
def test_frames_are_added_exactly(name, quick_gelu):
    made = model((FAST | PLAIN)[name], quick_gelu)
    tower = ImageTower(made, PREPROCESS, batch=4)
    assert (tower.path, bool(tower.why)) == (("patches", False) if name in FAST else ("plain", True))
    images, frames = batch(7, 3)
    features = tower.encode_framed(tower.project(images), frames)
    assert features.shape == (3, 7, 16)
    for frame, answered in zip(frames, features, strict=True):
        expected = reference(made, images + frame)
        assert (answered - expected).abs().max() < 1e-6
        assert (answered - reference(made, images)).abs().max() > 1e-3
    assert tower.encodes == 21


@torch.no_grad()
def test_encode_is_the_models_own():
    made = model(VIT)
    images, _ = batch(7, 0)
    tower = ImageTower(made, PREPROCESS, batch=4)
    assert (tower.encode(images) - reference(made, images)).abs().max() < 1e-6
    assert tower.encodes == 7


@torch.no_grad()
def test_a_candidates_bits_do_not_depend_on_the_others():
    tower = ImageTower(model(VIT), PREPROCESS)
    images, frames = batch(5, 3)
    projected = tower.project(images)
    together = tower.encode_framed(projected, frames)
    for number in range(3):
        assert torch.equal(tower.encode_framed(projected, frames[number : number + 1])[0], together[number])


def test_plain_on_demand():
    tower = ImageTower(model(VIT), PREPROCESS, path="plain")
    assert (tower.path, tower.why) == ("plain", "asked for")


@pytest.mark.parametrize("harm", ["pooled token", "frame", "not a number"])
def test_the_canary_falls_back_loudly(harm, monkeypatch, caplog):
    if harm == "pooled token":
        monkeypatch.setattr(image_tower, "_last_block", lambda block, x: block(x)[:, 1])
    elif harm == "frame":
        patches = ImageTower._patches
        monkeypatch.setattr(ImageTower, "_patches", lambda self, x: patches(self, x * (len(x) > 1)))
    else:
        monkeypatch.setattr(image_tower, "_last_block", lambda block, x: block(x)[:, 0] * torch.nan)
    with caplog.at_level(logging.WARNING):
        tower = ImageTower(model(VIT), PREPROCESS)
    assert tower.path == "plain" and "differed" in tower.why and "differed" in caplog.text
    assert tower.encodes == 0


def test_gradients_flow_for_white_box_references():
    tower = ImageTower(model(VIT), PREPROCESS)
    images, frames = batch(2, 1)
    frames.requires_grad_()
    tower.encode_framed(tower.project(images), frames)[..., 0].sum().backward()
    assert frames.grad.abs().max() > 0
