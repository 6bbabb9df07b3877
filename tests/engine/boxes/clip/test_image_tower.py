"""The image tower: its fast path is the plain one, wherever the architecture allows it, and plain elsewhere."""

import logging

import open_clip
import pytest
import torch

from engine.boxes.clip import image_tower
from engine.boxes.clip.image_tower import ImageTower
from engine.preprocessing import Preprocess

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
FOLDED = {
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "deeper resnet": {"image_size": 32, "layers": [2, 1, 2, 1], "width": 16, "head_width": 64},
}
PLAIN = {
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
    for module in made.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return made


def batch(rows: int, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.rand((rows + frames, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    return noise[:rows], noise[rows:] - 0.5


def reference(made: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    return made.encode_image((pixels - mean) / std, normalize=True)


WAYS = {"patches": FAST, "folded": FOLDED, "plain": PLAIN}
EACH = [(way, name) for way, models in WAYS.items() for name in models]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize(("way", "name"), EACH)
@torch.no_grad()
def test_frames_are_added_exactly(way, name, quick_gelu, clip):
    made = model(WAYS[way][name], quick_gelu)
    tower = ImageTower(made, PREPROCESS, batch=4, clip=clip)
    assert (tower.path, bool(tower.why)) == (way, way == "plain")
    images, frames = batch(7, 3)
    projected = tower.project(images)
    assert projected[0].numel() * 4 == tower.projected_bytes
    assert tower.linear == (way == "patches" and not clip)
    features = tower.encode_framed(projected, frames)
    assert features.shape == (3, 7, 16)
    for frame, answered in zip(frames, features, strict=True):
        sums = (images + frame).clamp(0, 1) if clip else images + frame
        assert (answered - reference(made, sums)).abs().max() < 1e-6
        assert (answered - reference(made, images)).abs().max() > 1e-3
    assert tower.encodes == 21
    other = images + frames[0] if clip else (images + frames[0]).clamp(0, 1)
    assert (features[0] - reference(made, other)).abs().max() > 1e-3


@pytest.mark.parametrize(("way", "name"), EACH)
@torch.no_grad()
def test_encode_is_the_models_own(way, name):
    made = model(WAYS[way][name])
    images, _ = batch(7, 0)
    tower = ImageTower(made, PREPROCESS, batch=4)
    assert (tower.encode(images) - reference(made, images)).abs().max() < 1e-6
    assert tower.encodes == 7


@torch.no_grad()
def test_the_portable_way_is_the_same():
    made = model(VIT)
    images, frames = batch(3, 2)
    packed, portable = (ImageTower(made, PREPROCESS, prepack=prepack) for prepack in (True, False))
    assert portable.path == "patches"
    both = [tower.encode_framed(tower.project(images), frames) for tower in (packed, portable)]
    assert (both[0] - both[1]).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["vit", "resnet"])
@torch.no_grad()
def test_a_frame_of_zeros_is_no_frame(name):
    tower = ImageTower(model((FAST | FOLDED)[name]), PREPROCESS)
    images, frames = batch(5, 2)
    features = tower.encode_framed(tower.project(images), 0 * frames)
    assert torch.equal(features[0], features[1])
    assert (features[0] - tower.encode(images)).abs().max() < 1e-6


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", ["vit", "resnet"])
@torch.no_grad()
def test_a_candidates_bits_do_not_depend_on_the_others(name, clip):
    tower = ImageTower(model((FAST | FOLDED)[name]), PREPROCESS, clip=clip)
    images, frames = batch(5, 3)
    projected = tower.project(images)
    together = tower.encode_framed(projected, frames)
    for number in range(3):
        assert torch.equal(tower.encode_framed(projected, frames[number : number + 1])[0], together[number])


@torch.no_grad()
def test_small_batches_of_several_candidates_are_joined_off_the_cpu():
    tower = ImageTower(model(VIT), PREPROCESS, batch=8)
    images, frames = batch(3, 5)
    alone = tower.encode_framed(tower.project(images), frames)
    tower._on_cpu = False
    calls = []
    run = tower._from_patches
    tower._from_patches = lambda patches: calls.append(len(patches)) or run(patches)
    assert (tower.encode_framed(tower.project(images), frames) - alone).abs().max() < 1e-6
    assert calls == [6, 6, 3]


def test_micro_batches_follow_from_the_model_alone():
    assert ImageTower(model(VIT), PREPROCESS).batch == 1024 // 17
    assert ImageTower(model(FOLDED["resnet"]), PREPROCESS).batch == 256
    assert ImageTower(model(VIT), PREPROCESS, path="plain").batch == 32


def test_plain_on_demand():
    tower = ImageTower(model(VIT), PREPROCESS, path="plain")
    assert (tower.path, tower.why) == ("plain", "asked for")


def test_fingerprints_tell_models_apart_and_cost_nothing():
    towers = [ImageTower(model(vision), PREPROCESS) for vision in (VIT, VIT, VIT | {"layers": 2})]
    first, same, other = (tower.fingerprint() for tower in towers)
    assert first == same != other
    assert towers[0].encodes == 0


@pytest.mark.parametrize("harm", ["pooled token", "frame", "not a number", "norm"])
def test_the_canary_falls_back_loudly(harm, monkeypatch, caplog):
    made = model(FOLDED["resnet"] if harm == "norm" else VIT)
    if harm == "pooled token":
        pooled = image_tower._pooled
        monkeypatch.setattr(image_tower, "_pooled", lambda layers, x, heads: pooled(layers, x.flip(1), heads))
    elif harm == "frame":
        patches = ImageTower._patches
        monkeypatch.setattr(ImageTower, "_patches", lambda self, x: patches(self, x * (len(x) > 1)))
    elif harm == "norm":
        monkeypatch.setattr(image_tower, "fuse_conv_bn_eval", lambda conv, norm: conv)
    else:
        pooled = image_tower._pooled
        monkeypatch.setattr(image_tower, "_pooled", lambda *args: pooled(*args) * torch.nan)
    with caplog.at_level(logging.WARNING):
        tower = ImageTower(made, PREPROCESS)
    assert tower.path == "plain" and "differed" in tower.why and "differed" in caplog.text
    assert tower.encodes == 0
    images, _ = batch(2, 0)
    assert (tower.encode(images) - reference(made, images)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_gradients_flow_for_white_box_references(name):
    made = model((FAST | FOLDED)[name])
    tower = ImageTower(made, PREPROCESS)
    images, frames = batch(2, 1)
    frames.requires_grad_()
    tower.encode_framed(tower.project(images), frames)[..., 0].sum().backward()
    mine, frames.grad = frames.grad, None
    reference(made, images + frames)[..., 0].sum().backward()
    torch.testing.assert_close(mine, frames.grad, rtol=1e-3, atol=1e-6)
    assert mine.abs().max() > 0
