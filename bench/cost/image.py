"""The image side of `keyhole bench evaluate`: what one pixel frame costs.

open_clip models with random weights, B images, P frames; open_clip's own forward and ours take turns in one process,
one thread, on CPU time. A ratio is the median of the paired ratios of the turns. The matrix rate is measured in every
turn as well, so that a noisy neighbour slows both.

Knows nothing of tasks, searches or accuracy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.timing import clock, machine, matrix_rate, spread_of

MODELS = ("ViT-B-32", "ViT-B-16")
BARS = {"ViT-B-32": 1.21, "ViT-B-16": 1.11}
"""How many times cheaper than open_clip's own forward we must be."""
BORDER = 30 / 224


def run(
    *,
    models: Sequence[str] = MODELS,
    images: int = 4,
    candidates: int = 8,
    turns: int = 3,
    device: str = "cpu",
    quick: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and return everything that `table` prints, as plain JSON values.

    Args:
        models: open_clip configurations with a VisionTransformer; they get random weights.
        images: B.
        candidates: P frames.
        turns: how often all ways take turns.
        device: a torch device. On one that is not a CPU, wall-clock time after synchronising.
        quick: one model, two images, two turns.
        seed: of weights, images and frames.
    """
    import torch

    if quick:
        models, images, turns = models[:1], min(images, 2), min(turns, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_row(name, images, candidates, turns, device, seed) for name in models]
    finally:
        torch.set_num_threads(threads)
    return {"machine": machine(device), "candidates": candidates, "images": images, "image": rows}


def table(result: dict[str, Any]) -> str:
    """The result of `run` as a markdown table, bars and all."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"P={result['candidates']} frames on B={result['images']} images, {where}",
        "",
        "| model | ms a pair | times cheaper than open_clip's forward, a candidate at a time (bar) | "
        "than the same, all candidates together | FLOPs saved at the floor | GFLOP a pair at the floor | GFLOP/s | "
        "of the matrix rate | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["image"]:
        lines.append(
            f"| {row['model']} | {row['ms']:.1f} | {_ratio(row['ratio']['own'], row['bar'])} | "
            f"{_ratio(row['ratio']['batched'], None)} | {row['flops_saved']:.2f} | {row['floor_gflop']:.2f} | "
            f"{row['gflops']:.0f} | {row['of_rate']:.0%} of {row['rate_gflops']:.0f} | {row['difference']:.1e} |"
        )
    return "\n".join(lines)


def _ratio(found: dict[str, float], bar: float | None) -> str:
    text = f"{found['median']:.2f} [{found['least']:.2f}, {found['most']:.2f}]"
    return text if bar is None else f"{text} ({bar:g}{'' if found['median'] >= bar else ', missed'})"


def _row(name: str, images: int, candidates: int, turns: int, device: str, seed: int) -> dict[str, Any]:
    import open_clip
    import torch

    from engine.boxes.clip.image_tower import ImageTower
    from engine.boxes.clip.weights import preprocess_of

    torch.manual_seed(seed)
    model = open_clip.create_model(name, pretrained=None, device=device).eval().requires_grad_(False)
    model.transformer = None  # the text tower is not needed
    preprocess = preprocess_of(model)
    tower, side = ImageTower(model, preprocess), preprocess.size
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(images, 3, side, side, generator=generator).to(device)
    width = round(BORDER * side)
    frames = torch.randn(candidates, 3, side, side, generator=generator) * 0.25
    frames[:, :, width:-width, width:-width] = 0
    frames = frames.to(device)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))

    def plain(framed: Any) -> Any:
        return model.encode_image((framed - mean) / std, normalize=True)

    # A candidate at a time costs the same for each: two stand for all.
    alone = frames[:2]

    def own() -> Any:
        return torch.stack([plain(pixels + frame) for frame in alone])

    def batched() -> Any:
        return plain((pixels + frames[:, None]).flatten(0, 1)).unflatten(0, (candidates, images))

    seconds = clock(torch.device(device))
    rate = matrix_rate(torch.device(device), model.visual.conv1.out_channels, seed)
    found: dict[str, list[float]] = {"rate": [], "ours": [], "own": [], "batched": []}
    with torch.inference_mode():
        projected = tower.project(pixels)  # once a task
        ours = tower.encode_framed(projected, frames)
        difference = float((own() - ours[: len(alone)]).abs().max())
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "own": (own, images * len(alone)),
            "batched": (batched, images * candidates),
        }
        for _ in range(turns):
            found["rate"].append(rate())
            found["ours"].append(seconds(lambda: tower.encode_framed(projected, frames))[0] / (images * candidates))
            for way, (call, num) in ways.items():
                found[way].append(seconds(call)[0] / num)
    visual = model.visual
    shape = {
        "layers": len(visual.transformer.resblocks),
        "width": visual.conv1.out_channels,
        "tokens": len(visual.positional_embedding),
        "embed": visual.proj.shape[1],
        "patch": 3 * visual.conv1.kernel_size[0] ** 2,
    }
    floor = floor_flops(images=images, **shape)
    speeds = [floor / time / 1e9 for time in found["ours"]]
    return {
        "model": name,
        "path": tower.path,
        "turns": turns,
        "ms": 1e3 * statistics.median(found["ours"]),
        "ratio": {way: spread_of([a / b for a, b in zip(found[way], found["ours"], strict=True)]) for way in ways},
        "bar": BARS.get(name),
        "flops_saved": plain_flops(**shape) / floor,
        "floor_gflop": floor / 1e9,
        "gflops": statistics.median(speeds),
        "rate_gflops": statistics.median(found["rate"]),
        "of_rate": statistics.median(a / b for a, b in zip(speeds, found["rate"], strict=True)),
        "difference": difference,
    }


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
