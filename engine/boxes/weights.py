"""open_clip names, tags, folders and weight files -> a frozen float32 model, what identifies it, and its box.

Files are memory-mapped where their tensors are float32: the workers of a node share one copy of the pages.
Knows nothing of prompts or of how a box answers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from torch import Tensor, nn

from engine.boxes import refuse_unknown
from engine.boxes.clip import ClipBox
from engine.errors import BoxError, RecipeError, nearest
from engine.images import Preprocess

ACTIVATIONS = ("quickgelu", "gelu")
_SUFFIX = "-quickgelu"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def open_named(
    rest: str,
    *,
    uri: str,
    classes: tuple[str, ...],
    template: str,
    gives: frozenset[str] | None,
    device: str,
    options: Mapping[str, str],
) -> ClipBox:
    """`open_clip:MODEL,WEIGHTS`: a published tag, a file, or `random`.

    Options: `seed` of random weights; `activation` (quickgelu or gelu) and `tag` (the published weights whose
    activation and preprocessing apply) of a file.

    Raises:
        RecipeError: The model, the weights or an option is unknown, or the box cannot tell what a file needs.
        BoxError: Published weights could not be fetched.
    """
    name, comma, weights = rest.partition(",")
    if name not in open_clip.list_models():
        raise RecipeError(
            f"box {uri!r}: open_clip has no model {name!r}{nearest(name, open_clip.list_models())}; "
            "write open_clip:MODEL,WEIGHTS"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not comma or not weights:
        raise RecipeError(
            f"box {uri!r}: which weights of {name}? write open_clip:{name},WEIGHTS with a file, `random`, "
            f"or a tag of {', '.join(tags) or 'none'}"
        )
    if weights == "random":
        refuse_unknown(uri, options, ("seed",))
        model, identity = _random(uri, name, options.get("seed", "0"))
    elif (tag := weights.lower().replace("-", "_")) in tags:
        refuse_unknown(uri, options, ())
        published = open_clip.get_pretrained_cfg(name, tag)
        path = _fetched(uri, lambda: open_clip.download_pretrained(published))
        model, identity = _from_file(uri, name, Path(path), _quick(name, published), published)
    elif Path(weights).is_file():
        refuse_unknown(uri, options, ("activation", "tag"))
        quick, published = _meaning(uri, name, options)
        model, identity = _from_file(uri, name, Path(weights), quick, published)
    else:
        raise RecipeError(
            f"box {uri!r}: {weights!r} is no file and no tag of {name}{nearest(weights, tags)}; "
            f"its tags are {', '.join(tags) or 'none'}"
        )
    tokenizer = _fetched(uri, lambda: open_clip.get_tokenizer(name))
    return _box(model, tokenizer, identity, uri=uri, classes=classes, template=template, gives=gives, device=device)


def open_hub(rest: str, *, uri: str, device: str, options: Mapping[str, str], **task: Any) -> ClipBox:
    """`hf-hub:ORG/REPO`, by open_clip's own loading. Raises BoxError where it cannot be fetched."""
    refuse_unknown(uri, options, ())
    if rest.count("/") != 1 or not all(rest.split("/")):
        raise RecipeError(f"box {uri!r}: a repository is named hf-hub:ORG/REPO")
    return _open_elsewhere(f"hf-hub:{rest}", uri, device, task)


def open_folder(rest: str, *, uri: str, device: str, options: Mapping[str, str], **task: Any) -> ClipBox:
    """`local-dir:PATH`, a folder with open_clip_config.json and weights, by open_clip's own loading."""
    refuse_unknown(uri, options, ())
    if not (Path(rest) / "open_clip_config.json").is_file():
        raise RecipeError(f"box {uri!r}: no open_clip_config.json in {rest!r}; name a folder that open_clip wrote")
    return _open_elsewhere(f"local-dir:{rest}", uri, device, task)


def _open_elsewhere(name: str, uri: str, device: str, task: dict[str, Any]) -> ClipBox:
    """A model whose configuration lies beside its weights."""
    model = _fetched(uri, lambda: open_clip.create_model(name, require_pretrained=True))
    tokenizer = _fetched(uri, lambda: open_clip.get_tokenizer(name))
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    return _box(model, tokenizer, _identity(name, state_sha256(model), quick), uri=uri, device=device, **task)


def _fetched(uri: str, fetch: Callable[[], Any]) -> Any:
    """What `fetch` returns. Raises BoxError in one sentence where a hub, a download or its content fails."""
    try:
        return fetch()
    except Exception as error:  # hubs fail with their own errors, OSError, RuntimeError and ValueError alike
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BoxError(
            f"box {uri!r}: could not be loaded ({reason}); check the name and the network, "
            "or fetch the weights to a file and give its path"
        ) from error


def _box(model: nn.Module, tokenizer: Any, identity: dict[str, Any], **settings: Any) -> ClipBox:
    return ClipBox(model.eval(), tokenizer, preprocess_of(model), identity=identity, **settings)


def _identity(name: str, sha256: str, quick: bool) -> dict[str, Any]:
    return {"weights": sha256, "model": name, "activation": ACTIVATIONS[0] if quick else ACTIVATIONS[1]}


def preprocess_of(model: nn.Module) -> Preprocess:
    """The preprocessing that open_clip keeps with a model."""
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


def _random(uri: str, name: str, seed: str) -> tuple[nn.Module, dict[str, Any]]:
    """Seeded random weights; torch's own generator is left as it was."""
    if not (seed.isascii() and seed.isdigit()):
        raise RecipeError(f"box {uri!r}: seed={seed}; a seed is a whole number from 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model = _created(uri, name, pretrained_text=False)
    quick = open_clip.get_model_config(name).get("quick_gelu", False)
    return model, _identity(name, state_sha256(model), quick)


def _created(uri: str, name: str, **settings: Any) -> nn.Module:
    """A model without weights. One built on another library's tower may need that library's files."""
    with _unlogged():
        return _fetched(uri, lambda: open_clip.create_model(name, load_weights=False, **settings))


@contextmanager
def _unlogged() -> Iterator[None]:
    """While open: nothing is logged on the root logger, where open_clip would warn that a model has no weights yet."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addFilter(_nothing)
    root.addHandler(handler)  # without any, logging.warning would install one for good
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False


def _quick(name: str, published: Mapping[str, Any]) -> bool:
    """Whether published weights want quick-GELU: the tag says it, or the model's own configuration."""
    return bool(published.get("quick_gelu", open_clip.get_model_config(name).get("quick_gelu", False)))


def _meaning(uri: str, name: str, options: Mapping[str, str]) -> tuple[bool, Mapping[str, Any]]:
    """The activation and the published preprocessing that apply to a file, which has neither in it.

    Raises:
        RecipeError: More than one is possible and no option says which.
    """
    tags = open_clip.list_pretrained_tags_by_model(name)
    if (tag := options.get("tag")) is not None and tag not in tags:
        raise RecipeError(f"box {uri!r}: tag={tag}{nearest(tag, tags)}; the tags of {name} are {', '.join(tags)}")
    if (activation := options.get("activation")) is not None and activation not in ACTIVATIONS:
        raise RecipeError(f"box {uri!r}: activation={activation}; it is {' or '.join(ACTIVATIONS)}")
    if activation is not None:
        quick = activation == ACTIVATIONS[0]
    elif tag is not None:
        quick = _quick(name, open_clip.get_pretrained_cfg(name, tag))
    elif name + _SUFFIX in open_clip.list_models():
        # open_clip has this model in both variants, and their weights have the same names and shapes.
        raise RecipeError(
            f"box {uri!r}: weights of {name} were trained with GELU or with quick-GELU and the file does not tell; "
            "add ?activation=quickgelu (all of OpenAI's own weights) or ?activation=gelu, or ?tag=TAG of "
            f"{', '.join(tags)}"
        )
    else:
        quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    published = {known: open_clip.get_pretrained_cfg(name, known) for known in tags}
    if tag is not None:
        return quick, published[tag]
    alike = [known for known in tags if _quick(name, published[known]) == quick] or tags
    ways: dict[tuple[Any, ...], list[str]] = {}
    for known in alike:
        key = tuple(published[known].get(part) for part in _PREPROCESSING)
        ways.setdefault(key, []).append(known)
    if len(ways) > 1:
        described = "; ".join(", ".join(names) for names in ways.values())
        raise RecipeError(
            f"box {uri!r}: published weights of {name} differ in their preprocessing and the file does not tell "
            f"which it needs; add ?tag=TAG of one of these groups: {described}"
        )
    return quick, published[alike[0]] if alike else {}


def _from_file(
    uri: str, name: str, path: Path, quick: bool, published: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A model with a file's weights. Raises RecipeError where the file is not this model's."""
    wanted = {key: published[key] for key in _PREPROCESSING if key in published}
    settings: dict[str, Any] = {"quick_gelu": quick, "pretrained_text": False, "force_preprocess_cfg": wanted}
    try:
        model = _mapped(uri, name, path, settings)
    except BoxError:
        raise
    except Exception as error:  # torch, safetensors and pickle each have their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(
            f"box {uri!r}: {str(path)!r} does not hold weights of {name} ({reason}); give this model's own file"
        ) from error
    return model, _identity(name, file_sha256(path), quick)


def _mapped(uri: str, name: str, path: Path, settings: dict[str, Any]) -> nn.Module:
    """Build without memory and put the file's tensors in place; by open_clip's loader where that is not possible."""
    config = open_clip.get_model_config(name)
    foreign = "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]
    if foreign or path.suffix in (".npz", ".npy"):  # these towers compute constants while they are built
        model = _created(uri, name, **settings)
        load_checkpoint(model, str(path))
        return model
    state = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in _read(path).items()}
    with torch.device("meta"):
        model = _created(uri, name, device="meta", **settings)
    _adapted(model, state)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        # The one tensor of open_clip's towers that no file holds.
        if (mask := module._buffers.get("attn_mask")) is not None and mask.is_meta:
            module._buffers["attn_mask"] = torch.full(mask.shape, float("-inf")).triu_(1)
    left = [key for key, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"{name}: no values for {left}"
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, a torch checkpoint or OpenAI's TorchScript archive, memory-mapped."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:
        loaded = torch.jit.load(str(path), map_location="cpu").state_dict()
    state = loaded.get("state_dict", loaded)
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def _adapted(model: nn.Module, state: dict[str, Tensor]) -> None:
    """What open_clip's `load_checkpoint` does between reading a file and using it, in place."""
    for key in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives hold these as tensors
        state.pop(key, None)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        custom = open_clip.model.convert_to_custom_text_state_dict(dict(state))
        state.clear()
        state.update(custom)
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
