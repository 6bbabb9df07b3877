"""Weight files, or seeded random weights -> an open_clip model and its identity.

Files are memory-mapped where their tensors are float32, so the workers of a node share one copy of the pages.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from torch import Tensor, nn

from engine.errors import BoxError, RecipeError, extra, reason
from engine.preprocessing import Preprocess

ACTIVATIONS = ("quickgelu", "gelu")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""Keys of the preprocessing that open_clip publishes with weights."""


def fetched(uri: str, fetch: Callable[[], Any]) -> Any:
    """What `fetch` returns.

    Raises:
        BoxError: A hub, a download or its content failed.
        RecipeError: A package is missing.
    """
    try:
        with _unlogged():
            return fetch()
    except Exception as error:  # hubs raise errors of their own besides OSError, RuntimeError and ValueError
        if "transformers" in str(error) and importlib.util.find_spec("transformers") is None:
            raise RecipeError(f"box {uri!r}: this model needs the package 'transformers'; {extra('hf')}") from error
        raise BoxError(
            f"box {uri!r}: could not be loaded ({reason(error)}); check the name and the network, "
            "or fetch the weights to a file and give its path"
        ) from error


def identity_of(name: str, sha256: str, quick: bool) -> dict[str, Any]:
    """A box's identity as far as its weights determine it; `quick`: whether the activation is quick-GELU."""
    return {"weights": sha256, "model": name, "activation": ACTIVATIONS[0] if quick else ACTIVATIONS[1]}


def preprocess_of(model: nn.Module) -> Preprocess:
    """The preprocessing that open_clip keeps with a model. Raises RecipeError for images that are not square."""
    config = open_clip.get_model_preprocess_cfg(model)
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (config["mean"], config["std"]))
    size = config["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise RecipeError(f"a model for images of {size} pixels: only square ones are supported")
    return Preprocess(
        size=int(sides.pop()),
        mean=mean,
        std=std,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        resize=config.get("resize_mode") or "shortest",
        fill=int(config.get("fill_color", 0)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def random_model(uri: str, name: str, seed: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model with seeded random weights, and its identity; torch's own generator is left as it was.

    Raises RecipeError where `seed` is not a whole number from 0.
    """
    if not (seed.isascii() and seed.isdigit()):
        raise RecipeError(f"box {uri!r}: seed={seed}; a seed is a whole number from 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model = _created(uri, name, pretrained_text=False)
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    return model, identity_of(name, state_sha256(model), quick)


def _created(uri: str, name: str, **settings: Any) -> nn.Module:
    """A model without weights. A tower of another library may need that library's files."""
    return fetched(uri, lambda: open_clip.create_model(name, load_weights=False, **settings))


@contextmanager
def _unlogged() -> Iterator[None]:
    """While open, the root logger is silent: open_clip reports each of its steps there."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(_nothing)
    root.addHandler(handler)  # without a handler, logging.warning would install one permanently
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False


def model_from_file(
    uri: str, name: str, path: Path, quick: bool, published: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with a file's weights, and its identity.

    Args:
        uri: The box, for messages.
        name: open_clip's name of the model.
        path: The weights.
        quick: Whether they want quick-GELU.
        published: Preprocessing that applies, in open_clip's words.

    Raises RecipeError where the file is not this model's.
    """
    wanted = {key: published[key] for key in PREPROCESSING if key in published}
    settings: dict[str, Any] = {"quick_gelu": quick, "pretrained_text": False, "force_preprocess_cfg": wanted}
    try:
        model = _mapped(uri, name, path, settings)
    except BoxError:
        raise
    except Exception as error:  # torch, safetensors and pickle raise errors of their own
        raise RecipeError(
            f"box {uri!r}: {str(path)!r} does not hold weights of {name} ({reason(error)}); give this model's own file"
        ) from error
    return model, identity_of(name, file_sha256(path), quick)


def _mapped(uri: str, name: str, path: Path, settings: dict[str, Any]) -> nn.Module:
    """Build the model on the meta device and assign the file's tensors, or use open_clip's loader where it must be."""
    config = open_clip.get_model_config(name)
    foreign = "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]
    if foreign or path.suffix in (".npz", ".npy"):  # these towers compute constants when built
        model = _created(uri, name, **settings)
        load_checkpoint(model, str(path))
        return model
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in _read(path).items()}
    with torch.device("meta"):
        model = _created(uri, name, device="meta", **settings)
    _adapted(model, state)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        # The one tensor of open_clip's towers that is in no file.
        if (mask := module._buffers.get("attn_mask")) is not None and mask.is_meta:
            module._buffers["attn_mask"] = torch.full(mask.shape, float("-inf")).triu_(1)
    left = [key for key, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"{name}: no values for {left}"
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or torch checkpoint, memory-mapped, or of OpenAI's TorchScript archive."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    zipped = zipfile.is_zipfile(path)
    if zipped and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        loaded = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:  # torch's older format is no zip file and cannot be mapped
        loaded = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    state = loaded.get("state_dict", loaded)
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _adapted(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Convert a file's tensors in place, as open_clip's `load_checkpoint` does after reading them."""
    for key in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives hold these as tensors
        state.pop(key, None)
    converted = convert_state_dict(model, dict(state))
    if "positional_embedding" in converted and not hasattr(model, "positional_embedding"):
        converted = open_clip.model.convert_to_custom_text_state_dict(converted)
    state.clear()
    state.update(converted)
    if "logit_bias" not in state and model.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    for key in ("logit_scale", "logit_bias"):
        if key in state:
            state[key] = state[key].reshape(getattr(model, key).shape)


# ---------------------------------------------------------------------------------------------------------------------
# Hashes


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_sha256(model: nn.Module) -> str:
    """SHA-256 (hex) of the names, shapes, types and values of a model's tensors, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).numpy()))
    return total.hexdigest()
