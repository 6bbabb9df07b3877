"""Training the shipped models from nothing: `python -m miniature.pretrain --model resnet --out FILE`.

CLIP's symmetric InfoNCE on rendered images, with new captions at each step. Off-diagonal captions that are true of an
image are not negatives. Temporary linear heads predict the attributes from the image embedding, with a weight that
fades out; another may predict a shipped model's image embeddings. The same recipe and number of threads give the same
bits on one CPU type and torch build.

Only the embedding rows of tokens in captions are trained and stored, so the file stays small.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn import functional

from engine.errors import RecipeError, nearest
from engine.random_streams import Purpose, rng
from miniature import captions, render
from miniature.models import ARCHITECTURES, EMBED_DIM, MEAN, STD, TEXT, load

HEADS = {
    "item": len(render.ITEMS),
    "color": len(render.COLORS),
    "texture": len(render.TEXTURES),
    "count": render.MAX_COUNT + 1,
    "position": len(render.POSITIONS),
    "size": len(render.SIZES),
    "direction": len(render.DIRECTIONS),
    "background": len(render.COLORS),
    "quality": len(render.QUALITIES),
}
"""What the temporary heads predict, and its number of classes."""
TEACHING = 4.0
"""Weight of the teacher's head relative to the attribute heads."""
_VALIDATION = 1_000_000
"""Seeds from here on render validation images."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that determines the weights."""

    model: str
    steps: int = 7_000
    seed: int = 1
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.05
    blocks: int = 64
    """Number of blocks of distinct images, which are repeated with new captions."""
    block: int = 4096
    """Images of a block."""
    teacher: str = ""
    """A shipped model whose image embeddings a temporary head predicts; '': none."""
    start: str = ""
    """A file of this architecture to start from; '': random weights."""


@dataclass
class Training:
    """The state of training between two steps."""

    recipe: Recipe
    model: Any
    heads: Any
    optimizer: Any
    vocabulary: list[int]
    device: str
    tokens_of: dict[str, list[int]]
    blocks: dict[int, tuple[np.ndarray, render.Scenes, np.ndarray]] = field(default_factory=dict)
    """Images, what they show, and the teacher's embeddings of them (empty without a teacher), by block."""
    step: int = 0


def vocabulary() -> list[int]:
    """Ids of the tokens in captions, ascending: the end token, which is pooled, stays the largest."""
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    ids = {token for word in captions.words() for token in tokenizer.encode(word)}
    return sorted({0, tokenizer.sot_token_id, tokenizer.eot_token_id} | ids)


def begin(recipe: Recipe, device: str = "cpu") -> Training:
    """A new model with its temporary heads and its optimiser. Raises RecipeError where the model is unknown."""
    if recipe.model not in ARCHITECTURES:
        raise RecipeError(
            f"unknown model {recipe.model!r}{nearest(recipe.model, ARCHITECTURES)}; known: {', '.join(ARCHITECTURES)}"
        )
    torch.manual_seed(recipe.seed)
    used = vocabulary()
    model = open_clip.CLIP(EMBED_DIM, ARCHITECTURES[recipe.model], TEXT | {"vocab_size": len(used)})
    model = model.to(device, memory_format=torch.channels_last)  # a fifth faster for convolutions on CPU
    sizes = HEADS | ({"teacher": EMBED_DIM} if recipe.teacher else {})
    heads = torch.nn.ModuleDict({name: torch.nn.Linear(EMBED_DIM, size) for name, size in sizes.items()}).to(device)
    if recipe.start:
        model.load_state_dict(_weights(Path(recipe.start)))
    parameters = [*model.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    return Training(recipe, model.train(), heads, optimizer, used, device, {})


def _weights(path: Path) -> dict[str, torch.Tensor]:
    """What `save` wrote, in fp32, with the short embedding table."""
    from safetensors.torch import load_file

    state = load_file(path)
    del state["vocabulary"]
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def step(training: Training) -> dict[str, float]:
    """Take one step in place and return its losses (nats) and the logit scale."""
    recipe, now = training.recipe, training.step
    images, scenes, taught = _batch(training)
    random = rng(recipe.seed, now, Purpose.WEIGHTS)
    claims = captions.claim(random, scenes)
    tokens = tokenize(captions.say(random, claims), training)
    truth = torch.from_numpy(captions.true_of(claims, scenes)).to(training.device)

    for group in training.optimizer.param_groups:
        group["lr"] = recipe.lr * min(1, (now + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * now / recipe.steps))
    embedded = training.model.encode_image(normalise(images, training.device))
    text = functional.normalize(read(training.model, tokens.to(training.device)), dim=-1)
    scale = training.model.logit_scale.exp()
    logits = scale * text @ functional.normalize(embedded, dim=-1).T  # (captions, images)
    diagonal = torch.arange(len(logits), device=logits.device)
    truth[diagonal, diagonal] = False
    logits = logits.masked_fill(truth, float("-inf"))
    contrast = (functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)) / 2
    attributes = sum(
        _head_loss(training.heads[name](embedded), torch.from_numpy(shown).to(training.device))
        for name, shown in _shown(scenes).items()
    ) / len(HEADS)
    extra = attributes
    if recipe.teacher:
        foretold = training.heads["teacher"](embedded)
        alike = functional.cosine_similarity(foretold, torch.from_numpy(taught).to(training.device))
        extra = extra + TEACHING * (1 - alike).mean()
    loss = contrast + (1 - now / recipe.steps) * extra

    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([*training.model.parameters(), *training.heads.parameters()], 1.0)
    training.optimizer.step()
    with torch.no_grad():
        training.model.logit_scale.clamp_(0, math.log(100))
    training.step += 1
    return {"contrast": contrast.item(), "attributes": attributes.item(), "scale": scale.item()}


def _head_loss(logits: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Mean over the images that show the attribute; 0 where none does."""
    losses = functional.cross_entropy(logits, shown, ignore_index=-1, reduction="sum")
    return losses / (shown >= 0).sum().clamp(min=1)


def _batch(training: Training) -> tuple[np.ndarray, render.Scenes, np.ndarray]:
    """The rows of this step: blocks in turn, each in a new order each time."""
    recipe = training.recipe
    turn, part = divmod(training.step, recipe.block // recipe.batch)
    block = turn % recipe.blocks
    if block not in training.blocks:
        images, scenes = render.render(recipe.seed, block, recipe.block)
        training.blocks[block] = images, scenes, _taught(recipe.teacher, images)
    images, scenes, taught = training.blocks[block]
    order = rng(recipe.seed, turn, Purpose.ROWS).permutation(recipe.block)
    rows = order[part * recipe.batch : (part + 1) * recipe.batch]
    scenes = render.Scenes(**{name: values[rows] for name, values in vars(scenes).items()})
    return images[rows], scenes, taught[rows] if recipe.teacher else taught


@torch.no_grad()
def _taught(teacher: str, images: np.ndarray) -> np.ndarray:
    """`(n, E)` image embeddings of the teacher, `(0, E)` without one."""
    if not teacher:
        return np.zeros((0, EMBED_DIM), np.float32)
    model = load(teacher).model
    return np.concatenate([model.encode_image(normalise(part), normalize=True).numpy() for part in _parts(images)])


def _shown(scenes: render.Scenes) -> dict[str, np.ndarray]:
    """What the heads predict: `(n,)` classes, -1 where there is none. The two groups of a pair count as one."""
    alone = np.where(scenes.item[:, 1] < 0, 0, -1)
    first = {name: np.where(alone == 0, getattr(scenes, name)[:, 0], -1) for name in ("item", "color", "texture")}
    plain = {
        name: getattr(scenes, name) for name in ("count", "position", "size", "direction", "background", "quality")
    }
    return first | plain


def tokenize(texts: list[str], training: Training) -> torch.Tensor:
    """`(n, 32)` rows of the short embedding table: the same tokens as open_clip's tokenizer, word by word."""
    known = training.tokens_of
    if not known:
        tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
        row = {token: place for place, token in enumerate(training.vocabulary)}
        for word in captions.words():
            for text in (word, f"{word}.", f"{word},") if word.isalnum() else ():
                known[text] = [row[token] for token in tokenizer.encode(text)]
    end = len(training.vocabulary) - 1
    tokens = torch.zeros(len(texts), TEXT["context_length"], dtype=torch.int64)
    for i, text in enumerate(texts):
        line = [end - 1, *(token for word in text.split() for token in known[word]), end]
        tokens[i, : len(line)] = torch.tensor(line)
    return tokens


def read(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """`(n, E)` text embeddings, as `model.encode_text` gives them, without the positions after the longest text."""
    ends = tokens.argmax(1)
    length = int(ends.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x), device=x.device), ends] @ model.text_projection


def normalise(images: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """uint8 `(n, 32, 32, 3)` -> float32 `(n, 3, 32, 32)` as the image towers expect it."""
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(value, device=device)[None, :, None, None] for value in (MEAN, STD))
    return (pixels - mean) / std


@torch.no_grad()
def validate(training: Training, n: int = 2048) -> dict[str, float]:
    """Zero-shot accuracies, fractions of 1, on n new renders of single objects, and for counts of several."""
    training.model.eval()
    single, seen = render.render(_VALIDATION + training.recipe.seed, 0, n, kinds=(1.0, 0.0, 0.0))
    many, counted = render.render(_VALIDATION + training.recipe.seed, 1, n // 2, kinds=(0.0, 1.0, 0.0))
    item, kinds = seen.item[:, 0], captions.category_of(seen.item[:, 0])
    large, directed = seen.size == 1, seen.direction >= 0
    rows = {
        "digit": ([f"digit {name}" for name in captions.NUMBERS], item, (kinds == 0) & large),
        "letter": ([f"letter {name}" for name in render.ITEMS[10:36]], item - 10, (kinds == 1) & large),
        "shape": (list(render.SHAPES), item - 36, (kinds == 2) & large),
        "color": ([f"{name} object" for name in render.COLORS], seen.color[:, 0], large),
        "texture": ([f"{name} object" for name in render.TEXTURES], seen.texture[:, 0], large & (kinds != 1)),
        "position": ([f"object, {name}" for name in render.POSITIONS], seen.position, ~large),
        "background": ([f"object on a {name} background" for name in render.COLORS], seen.background, item >= 0),
        "direction": ([f"object pointing {name}" for name in render.DIRECTIONS], seen.direction, directed),
    }
    embedded = _embed(training, single)
    accuracies = {
        name: _accuracy(training, words, embedded[keep], shown[keep]) for name, (words, shown, keep) in rows.items()
    }
    words = [f"{captions.NUMBERS[count]} objects" for count in range(2, 7)]
    accuracies["count"] = _accuracy(training, words, _embed(training, many), counted.count - 2)
    training.model.train()
    return accuracies


def _embed(training: Training, images: np.ndarray) -> torch.Tensor:
    parts = [training.model.encode_image(normalise(part, training.device), normalize=True) for part in _parts(images)]
    return torch.cat(parts)


def _parts(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 512] for start in range(0, len(images), 512)]


def _accuracy(training: Training, classes: list[str], embedded: torch.Tensor, labels: np.ndarray) -> float:
    texts = [f"a photo of {name}." if name.endswith("objects") else f"a photo of a {name}." for name in classes]
    text = training.model.encode_text(tokenize(texts, training).to(training.device), normalize=True)
    return float(((embedded @ text.T).argmax(1).cpu().numpy() == labels).mean())


def save(training: Training, path: Path, losses: dict[str, float], accuracies: dict[str, float]) -> None:
    """Write the model in fp16 with its short embedding table; recipe, losses and accuracies go into the header."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu() for name, value in training.model.state_dict().items() if name != "attn_mask"}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    state["vocabulary"] = torch.tensor(training.vocabulary, dtype=torch.int32)
    about = {"model": training.recipe.model, "steps_done": training.step, "recipe": asdict(training.recipe)}
    about |= {"losses": losses, "accuracies": accuracies, "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata=metadata)


def main(arguments: list[str] | None = None) -> None:
    """Train, save checkpoints `FILE.STEP.safetensors` on the way and `FILE` at the end, log to `FILE.json`."""
    parser = argparse.ArgumentParser(prog="python -m miniature.pretrain", description=main.__doc__)
    parser.add_argument("--model", default="resnet", choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--lr", type=float, default=None, help="default: 2e-3 for resnet, 1e-3 for vit")
    parser.add_argument("--teacher", default="", help="a shipped model to learn from besides")
    parser.add_argument("--start", default="", help="a file of the same model to go on from")
    parser.add_argument("--checkpoints", type=int, default=5, help="how many, the last included")
    parser.add_argument("--minutes-limit", type=float, default=math.inf, help="stop there; the schedule is unchanged")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    lr = args.lr or {"resnet": 2e-3, "vit": 1e-3}[args.model]
    recipe = Recipe(model=args.model, steps=args.steps, seed=args.seed, lr=lr, teacher=args.teacher, start=args.start)
    training = begin(recipe, args.device)
    log, sums, started = [], {}, time.monotonic()
    looks = {round(args.steps * (k + 1) / args.checkpoints) for k in range(args.checkpoints)}
    while training.step < args.steps and (time.monotonic() - started) / 60 < args.minutes_limit:
        for name, value in step(training).items():
            sums[name] = sums.get(name, 0.0) + value
        if training.step % 100 == 0 or training.step in looks:
            done = training.step - (log[-1]["step"] if log else 0)
            entry = {"step": training.step, "minutes": round((time.monotonic() - started) / 60, 2)}
            entry |= {name: round(value / done, 4) for name, value in sums.items()}
            sums = {}
            if training.step in looks or training.step % 1000 == 0:
                entry["accuracies"] = {name: round(value, 3) for name, value in validate(training).items()}
            if training.step in looks:
                save(training, args.out.with_suffix(f".{training.step}.safetensors"), entry, entry["accuracies"])
            log.append(entry)
            print(json.dumps(entry), flush=True)
            args.out.with_suffix(".json").write_text(json.dumps(log, indent=1) + "\n")
    save(training, args.out, log[-1] if log else {}, validate(training))


if __name__ == "__main__":
    main()
