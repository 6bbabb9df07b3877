"""open_clip names, tags, files and folders: the right weights, activation and preprocessing, or one clear sentence."""

import json
import logging

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from engine.boxes import open_box
from engine.boxes.toy import ToyImages
from engine.errors import BoxError, RecipeError
from engine.protocols import Prompts

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
RESNET = CONFIG | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}}
COCA = CONFIG | {
    "multimodal_cfg": {"width": 32, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 49408},
    "text_cfg": CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "vision_cfg": CONFIG["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "custom_text": True,
}
BIASED = CONFIG | {"init_logit_bias": -10.0, "custom_text": True}
OPENAI = {"mean": (0.48, 0.45, 0.4), "std": (0.26, 0.26, 0.27), "interpolation": "bicubic", "resize_mode": "shortest"}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
IMAGES = ToyImages(tuple(range(5)), seed=3)


@pytest.fixture(autouse=True)
def small_models(monkeypatch):
    """A few models that open_clip could have, small."""
    configs = {
        "Small": CONFIG,
        "Twin": CONFIG,
        "Twin-quickgelu": CONFIG | {"quick_gelu": True},
        "SmallResNet": RESNET,
        "SmallCoCa": COCA,
        "SmallBiased": BIASED,
    }
    for name, config in configs.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)


def opened(uri: str):
    return open_box(uri, classes=("cat", "dog"), template="a photo of a {}.")


def answer(box) -> np.ndarray:
    outputs = box.answer(Prompts(count=1), box.stage(IMAGES), np.arange(5))
    return np.concatenate([outputs.text[0], outputs.image[0]])


def state(box) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in box.model.state_dict().items()}


def saved(name: str, folder, kind: str = "safetensors", **changes) -> str:
    """A file with the weights of `open_clip:name,random?seed=5`."""
    tensors = state(opened(f"open_clip:{name},random?seed=5")) | changes
    path = folder / f"{name}.{kind}"
    if kind == "safetensors":
        save_file(tensors, str(path))
    else:
        torch.save(tensors, path)
    return str(path)


def test_random_weights_are_seeded_and_leave_torch_alone():
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    one, same, other = (opened(f"open_clip:Small,random?seed={seed}") for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(answer(one), answer(same))
    assert np.abs(answer(one) - answer(other)).max() > 1e-2
    assert one.spec.identity == same.spec.identity
    assert one.spec.identity["weights"] != other.spec.identity["weights"]


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("name", ["Small", "SmallResNet", "SmallCoCa", "SmallBiased"])
def test_a_file_holds_what_was_saved(tmp_path, name, kind):
    expected = answer(opened(f"open_clip:{name},random?seed=5"))
    path = saved(name, tmp_path, kind)
    box = opened(f"open_clip:{name},{path}")
    # Where a tensor begins in memory, convolutions may sum in another order; from one file it is always the same.
    np.testing.assert_allclose(answer(box), expected, atol=1e-6)
    np.testing.assert_array_equal(answer(opened(f"open_clip:{name},{path}")), answer(box))
    assert box.spec.identity["model"] == name and len(box.spec.identity["weights"]) == 64


def test_a_training_checkpoint_of_distributed_open_clip(tmp_path):
    tensors = state(opened("open_clip:Small,random?seed=5"))
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(wrapped, tmp_path / "epoch_3.pt")
    torch.save(wrapped, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("epoch_3.pt", "old.pt"):
        box = opened(f"open_clip:Small,{tmp_path / name}")
        np.testing.assert_array_equal(answer(box), answer(opened("open_clip:Small,random?seed=5")))


def test_openais_own_archive(tmp_path):
    """OpenAI published TorchScript archives in half precision, with three numbers among the tensors."""
    source = opened("open_clip:Twin,random?seed=5").model.half()

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in source.named_children():
                self.add_module(name, child)
            self.logit_scale, self.text_projection = source.logit_scale, source.text_projection
            self.positional_embedding = source.positional_embedding
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(16))

        def forward(self, x):
            return x

    torch.jit.save(torch.jit.trace(Archive(), torch.zeros(1)), tmp_path / "Twin.pt")
    box = opened(f"open_clip:Twin,{tmp_path / 'Twin.pt'}?activation=quickgelu")
    assert next(box.model.parameters()).dtype == torch.float32
    for name, tensor in source.state_dict().items():
        assert torch.equal(box.model.state_dict()[name], tensor.float()), name
    assert box.spec.identity["activation"] == "quickgelu"


def test_half_precision_is_computed_in_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in state(opened("open_clip:Small,random?seed=5")).items()}
    path = saved("Small", tmp_path, **halves)
    box = opened(f"open_clip:Small,{path}")
    assert {weight.dtype for weight in box.model.parameters()} == {torch.float32}
    difference = np.abs(answer(box) - answer(opened("open_clip:Small,random?seed=5"))).max()
    assert 0 < difference < 2e-3


@pytest.mark.skipif(not __import__("os").path.exists("/proc/self/maps"), reason="needs /proc")
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_weights_stay_in_the_file(tmp_path, kind):
    path = saved("Small", tmp_path, kind)
    box = opened(f"open_clip:Small,{path}")
    address = box.model.token_embedding.weight.data_ptr()
    with open("/proc/self/maps") as maps:
        spans = [line.split() for line in maps if line.rstrip().endswith(path)]
    inside = [s for s in spans if int(s[0].split("-")[0], 16) <= address < int(s[0].split("-")[1], 16)]
    assert inside, "the token embedding is a copy"


def test_the_activation_matters_and_a_box_that_cannot_tell_asks(tmp_path):
    path = saved("Twin", tmp_path)
    with pytest.raises(RecipeError, match=r"activation=quickgelu.*activation=gelu"):
        opened(f"open_clip:Twin,{path}")
    quick, plain = (opened(f"open_clip:Twin,{path}?activation={kind}") for kind in ("quickgelu", "gelu"))
    named = opened(f"open_clip:Twin-quickgelu,{path}")
    assert [box.spec.identity["activation"] for box in (quick, plain, named)] == ["quickgelu", "gelu", "quickgelu"]
    np.testing.assert_array_equal(answer(quick), answer(named))
    assert np.abs(answer(quick) - answer(plain)).max() > 1e-5
    with pytest.raises(RecipeError, match="activation=relu"):
        opened(f"open_clip:Twin,{path}?activation=relu")


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Published weights of Small, in files, that differ in activation and preprocessing."""
    path = saved("Small", tmp_path)
    tags = {
        "openai": OPENAI | {"file": path, "quick_gelu": True},
        "laion": OPENAI | {"file": path},
        "half": HALF | {"file": path},
    }
    monkeypatch.setitem(pretrained._PRETRAINED, "Small", tags)
    return path


def test_a_tag_brings_its_activation_and_preprocessing(published):
    openai, laion, half = (opened(f"open_clip:Small,{tag}").spec.identity for tag in ("openai", "laion", "half"))
    assert [identity["activation"] for identity in (openai, laion, half)] == ["quickgelu", "gelu", "gelu"]
    assert openai["preprocess"]["mean"] == [0.48, 0.45, 0.4] and openai["preprocess"]["resize"] == "shortest"
    assert half["preprocess"] == {
        "size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize": "squash", "fill": 0
    }  # fmt: skip
    assert openai["weights"] == laion["weights"]


def test_a_file_of_a_model_with_several_preprocessings_asks(published):
    with pytest.raises(RecipeError, match=r"differ in their preprocessing.*laion or half"):
        opened(f"open_clip:Small,{published}")
    assert opened(f"open_clip:Small,{published}?tag=half").spec.identity["preprocess"]["resize"] == "squash"
    openai = opened("open_clip:Small,openai").spec.identity
    assert opened(f"open_clip:Small,{published}?tag=openai").spec.identity == openai
    quick = opened(f"open_clip:Small,{published}?activation=quickgelu")  # of which there is one kind
    assert quick.spec.identity == openai
    with pytest.raises(RecipeError, match="did you mean 'openai'"):
        opened(f"open_clip:Small,{published}?tag=openais")


def test_published_weights_that_cannot_be_fetched_are_a_failed_box(monkeypatch):
    def unreachable(*_args, **_settings):
        raise OSError("network\nis down")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(BoxError, match="network is down") as raised:
        opened("open_clip:ViT-B-16,openai")
    assert raised.value.exit_code == 3 and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("Smal,random", "did you mean 'Small'"),
        ("Small", "which weights"),
        ("Small,", "which weights"),
        ("Small,random?seed=x", "whole number"),
        ("Small,random?activation=gelu", "no option 'activation'"),
        ("Small,/nowhere/weights.safetensors", "no weights file"),
        ("ViT-B-16,openia", "did you mean 'openai'"),
    ],
)
def test_mistakes_are_one_sentence(rest, message):
    with pytest.raises(RecipeError, match=message) as raised:
        opened(f"open_clip:{rest}")
    assert raised.value.exit_code == 2 and "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("content", ["other model", "noise", "text"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content == "other model":
        path = saved("SmallResNet", tmp_path)
    else:
        path.write_bytes(b"hello" if content == "text" else bytes(range(256)) * 8)
    with pytest.raises(RecipeError, match="does not hold weights of Small") as raised:
        opened(f"open_clip:Small,{path}")
    assert "\n" not in str(raised.value)


def test_a_folder_that_open_clip_wrote(tmp_path):
    save_file(state(opened("open_clip:Small,random?seed=5")), str(tmp_path / "open_clip_model.safetensors"))
    config = {"model_cfg": CONFIG, "preprocess_cfg": HALF}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    box = opened(f"local-dir:{tmp_path}")
    assert box.spec.identity["preprocess"]["resize"] == "squash"
    assert box.spec.identity["model"] == f"local-dir:{tmp_path.name}"
    np.testing.assert_array_equal(answer(box)[:2], answer(opened("open_clip:Small,random?seed=5"))[:2])
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(BoxError, match="could not be loaded"):
        opened(f"local-dir:{tmp_path}")


@pytest.mark.parametrize("uri", ["local-dir:/nowhere", "hf-hub:repo", "hf-hub:/x"])
def test_folders_and_repositories_must_look_like_one(uri):
    with pytest.raises(RecipeError, match=uri):
        opened(uri)


def test_opening_leaves_logging_as_it_was(tmp_path):
    root = logging.getLogger()
    before = list(root.handlers), list(root.filters)
    opened(f"open_clip:Small,{saved('Small', tmp_path)}")
    assert (list(root.handlers), list(root.filters)) == before


def test_the_callers_threads_are_left():
    with threadpool_limits(2):
        torch.set_num_threads(2)
        open_box("open_clip:Small,random", classes=("cat",), template="a {}")
        assert torch.get_num_threads() == 2
