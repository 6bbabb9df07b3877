"""The image side of `keyhole bench evaluate`: pixel frames on images through the image tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.cost.timing import Way, clock, compared, matrix_rate, ratio, work_cells
from bench.entry import header, line

BARS = {"ViT-B-32": 1.21, "ViT-B-16": 1.11}
"""How many times cheaper than open_clip's own forward we must be."""
BORDER = 30 / 224
COLUMNS = (
    *("model", "ms a pair", "times cheaper than open_clip's forward, a candidate at a time (bar)"),
    *("than the same, all candidates together", "FLOPs saved at the floor", "GFLOP a pair at the floor", "GFLOP/s"),
    *("of the matrix rate", "largest difference"),
)


def rows(models: Sequence[str], images: int, candidates: int, turns: int, device: str) -> list[dict[str, Any]]:
    """What `table` prints, as plain JSON values.

    Args:
        models: open_clip configurations with a VisionTransformer.
        images: B.
        candidates: P frames.
        turns: How often all ways take turns.
        device: A torch device.
    """
    return [{"model": name, "bar": BARS.get(name), **_row(name, images, candidates, turns, device)} for name in models]


def _row(name: str, images: int, candidates: int, turns: int, device: str) -> dict[str, Any]:
    import open_clip
    import torch

    from engine.boxes.clip.image_tower import ImageTower
    from engine.boxes.clip.weights import preprocess_of

    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None, device=device).eval().requires_grad_(False)
    model.transformer = None  # the text tower is not needed
    preprocess = preprocess_of(model)
    tower = ImageTower(model, preprocess)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels, frames = _inputs(preprocess.size, images, candidates, device)
    alone = frames[:2]  # a candidate at a time costs the same for each: two stand for all
    projected = tower.project(pixels)  # once a task

    def plain(framed: Any) -> Any:
        return model.encode_image((framed - mean) / std, normalize=True)

    def together() -> Any:
        return plain((pixels + frames[:, None]).flatten(0, 1)).unflatten(0, (candidates, images))

    ways = {
        "ours": Way(lambda: tower.encode_framed(projected, frames), images * candidates),
        "own": Way(lambda: torch.stack([plain(pixels + frame) for frame in alone]), images * len(alone)),
        "batched": Way(together, images * candidates),
    }
    visual = model.visual
    shape = {
        "layers": len(visual.transformer.resblocks),
        "width": visual.conv1.out_channels,
        "tokens": len(visual.positional_embedding),
        "embed": visual.proj.shape[1],
        "patch": 3 * visual.conv1.kernel_size[0] ** 2,
    }
    where = torch.device(device)
    flops = floor_flops(images=images, **shape), plain_flops(**shape)
    return {"path": tower.path, **compared(ways, matrix_rate(where, shape["width"]), clock(where), turns, flops)}


def _inputs(side: int, images: int, candidates: int, device: str) -> tuple[Any, Any]:
    """Images `(B, 3, H, H)` and frames `(P, 3, H, H)`, which are zero within the border."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, side, side, generator=generator)
    frames = torch.randn(candidates, 3, side, side, generator=generator) * 0.25
    width = round(BORDER * side)
    frames[:, :, width:-width, width:-width] = 0
    return pixels.to(device), frames.to(device)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, bars and all."""
    lines = [header(*COLUMNS)]
    for row in found:
        cells = (
            f"{row['ms']:.1f}",
            ratio(row["ratio"]["own"], row["bar"], digits=2),
            ratio(row["ratio"]["batched"], digits=2),
            *work_cells(row, digits=2),
            f"{row['of_rate']:.0%} of {row['rate_gflops']:.0f}",
            f"{row['difference']:.1e}",
        )
        lines.append(line(row["model"], *cells))
    return "\n".join(lines)


def floor_flops(*, layers: int, width: int, tokens: int, embed: int, patch: int, images: int) -> float:
    """Multiplications and additions that one pair needs when nothing shared is computed twice.

    Every token's four projections and MLP in every layer but the last, where only the pooled token needs more than
    keys and values; attention, two products over all tokens; the projection to E; and the frame's patch projection,
    shared by B images. Norms, activations and softmax are not counted.
    """
    linear = 2 * width**2 * (12 * (layers - 1) * tokens + 2 * tokens + 10)
    attention = 4 * width * tokens * ((layers - 1) * tokens + 1)
    return linear + attention + 2 * width * embed + 2 * (tokens - 1) * patch * width / images


def plain_flops(*, layers: int, width: int, tokens: int, embed: int, patch: int) -> int:
    """The same as open_clip's forward does it."""
    linear = 2 * width**2 * 12 * layers * tokens
    return linear + 4 * width * layers * tokens**2 + 2 * width * embed + 2 * (tokens - 1) * patch * width
