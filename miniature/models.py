"""The shipped models: opening them, checking that they are what this version expects, exporting them for open_clip.

A weight file holds only the embedding rows of the tokens that its captions used. open_clip's loader refuses such a
short table, so files are opened here and scattered into the full vocabulary, or exported as a full `local-dir`.

Knows nothing of tasks, of prompts, or of how the weights came to be (see pretrain.py and README.md).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.errors import BoxError, RecipeError, nearest

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "image_size": 32},
    "vit": {"layers": 6, "width": 192, "head_width": 32, "patch_size": 8, "image_size": 32},
}
"""open_clip's `vision_cfg` of each model."""
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
EMBED_DIM = 64
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
INTERPOLATION = "bicubic"
ABOUT = {
    "resnet": "a toy CLIP of 3 MB that comes with Keyhole and knows 130 tokens",
    "vit": "the same with a vision transformer, 6 MB",
}
"""What each is, in a line."""
HASHES = {
    "resnet": "00cb2c83919d817eb4067249354236d0bb1465cfacf67996c7fd8f9f3ef49f58",
    "vit": "b0c5452d4b33a66e7d6a1d75812f0d56c729c9c1ae5bb32d0bc877747bbf7c4a",
}
"""SHA-256 of each shipped file: which weights the numbers in README.md belong to."""
_FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An opened model and what must be known to feed it."""

    model: Any
    """open_clip.CLIP: fp32, eval, no gradients. Rows of the token embedding outside `vocabulary` are zero."""
    tokenizer: Any
    """open_clip.SimpleTokenizer of context length 32."""
    vocabulary: frozenset[int]
    """Ids of the tokens that were trained; the model cannot read others."""
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    weights_hash: str
    """SHA-256 of the file."""
    seed: int
    """What the pretraining was seeded with."""


@lru_cache(maxsize=4)
def load(name: str) -> Loaded:
    """Open a shipped model. The same object each time: it is frozen.

    Raises:
        RecipeError: no model of that name is shipped.
        BoxError: its file is missing or is not the one this version was released with.
    """
    if name not in HASHES:
        raise RecipeError(f"unknown model 'mini:{name}'{nearest(name, HASHES)}; shipped: {', '.join(HASHES)}")
    path = _FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise BoxError(
            f"the weights of mini:{name} are missing ({path.name}); reinstall, or check out miniature/weights"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != HASHES[name]:
        raise BoxError(
            f"{path.name} has SHA-256 {found[:16]}..., this version ships {HASHES[name][:16]}...; reinstall, or check "
            "out miniature/weights; to try your own weights, export them and open them as local-dir:"
        )
    return open_file(name, path)


def open_file(name: str, path: Path) -> Loaded:
    """Open any file that `miniature.pretrain` wrote for the architecture `name`, whatever its hash."""
    import open_clip
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        about = file.metadata()
    used = state.pop("vocabulary").long()
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    rows = state["token_embedding.weight"]
    table = torch.zeros(TEXT["vocab_size"], rows.shape[1])
    table[used] = rows
    state["token_embedding.weight"] = table
    model = open_clip.CLIP(EMBED_DIM, ARCHITECTURES[name], TEXT)
    model.load_state_dict(state)
    return Loaded(
        model=model.eval().requires_grad_(False),
        tokenizer=open_clip.SimpleTokenizer(context_length=TEXT["context_length"]),
        vocabulary=frozenset(used.tolist()),
        image_size=ARCHITECTURES[name]["image_size"],
        mean=MEAN,
        std=STD,
        interpolation=INTERPOLATION,
        weights_hash=hashlib.sha256(path.read_bytes()).hexdigest(),
        seed=json.loads(about["recipe"])["seed"],
    )


def export(name: str, folder: str | Path) -> Path:
    """Write the model as a folder that open_clip opens by itself: `local-dir:FOLDER`. Returns the folder."""
    from safetensors.torch import save_file

    loaded, folder = load(name), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_cfg": {"embed_dim": EMBED_DIM, "vision_cfg": ARCHITECTURES[name], "text_cfg": TEXT},
        "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": INTERPOLATION, "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {key: value.contiguous() for key, value in loaded.model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
