"""The text side of `keyhole bench evaluate`.

open_clip models with random weights, real class names, P candidates; the published ways (text_ways.py) and ours
take turns in one process, one thread, on CPU time. A ratio is the median of the paired ratios of the turns. The matrix
rate is measured in every turn as well, so that a noisy neighbour slows both.

Knows nothing of tasks, searches or accuracy.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.class_names import class_names
from bench.timing import clock, machine, matrix_rate, spread_of

MODELS = ("ViT-B-32", "ViT-B-16")
CASES = (
    ("cifar10", 4),
    ("cifar10", 16),
    ("eurosat", 4),
    ("eurosat", 16),
    ("cifar100", 4),
    ("cifar100", 16),
    ("imagenet", 16),
)
"""Class names and M."""
TEMPLATE = "a photo of a {}."
BARS = {(10, 4): (15, 2.3), (10, 16): (11.5, None), (100, 4): (24, 3), (100, 16): (22, 6), (1000, 16): (20, None)}
"""(C, M) -> how many times cheaper we must be than the peers' way, and than truncating and batching."""
RATE_BAR = 0.7
"""At the counted floor, the fraction of the matrix rate that we must reach."""
EXACT_BAR = 1e-6
"""The largest difference of normalised features that we may show."""
_COLUMNS = (
    "model",
    "names",
    "C",
    "M",
    "ms a candidate",
    "times cheaper than the peers' way (bar)",
    "than truncated and batched (bar)",
    "than open_clip's own forward",
    "a context per class costs",
    "FLOPs saved at the floor",
    "GFLOP at the floor",
    "GFLOP/s",
    "of the matrix rate",
    "largest difference",
)

_log = logging.getLogger(__name__)


def run(
    *,
    models: Sequence[str] = MODELS,
    cases: Sequence[tuple[str, int]] = CASES,
    candidates: int = 8,
    turns: int = 5,
    device: str = "cpu",
    quick: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure, and return what `table` prints as plain JSON values.

    Args:
        models: open_clip configurations of causal towers; they get random weights.
        cases: class names (see class_names.py) and M.
        candidates: P.
        turns: how often all ways take turns in a case; a fifth as often, at least once, beyond 100 classes.
        device: a torch device. On one that is not a CPU, wall-clock time after synchronising.
        quick: one model, no ImageNet, two turns at most.
        seed: of weights and contexts.
    """
    import torch

    if quick:
        models, turns = models[:1], min(turns, 2)
        cases = [case for case in cases if case[0] != "imagenet"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text = [row for name in models for row in _text_rows(name, cases, candidates, turns, device, seed)]
    finally:
        torch.set_num_threads(threads)
    return {"machine": machine(device), "candidates": candidates, "text": text}


def table(result: dict[str, Any]) -> str:
    """The result of `run` in markdown, bars and all."""
    where = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    lines = [
        f"Text tower, P={result['candidates']} candidates; {where}. Median [least, most] of paired ratios.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for row in result["text"]:
        peers, truncated, own, each = (row["ratio"][way] for way in ("peers", "truncated", "own", "per class"))
        cells = (
            row["model"],
            row["names"],
            row["C"],
            row["M"],
            f"{row['ms']:.1f}",
            _ratio(peers, row["bars"][0]),
            _ratio(truncated, row["bars"][1]),
            _ratio(own, None),
            _ratio(each, None),
            f"{row['flops_saved']:.1f}",
            f"{row['floor_gflop']:.1f}",
            f"{row['gflops']:.0f}",
            f"{row['of_rate']:.0%} of {row['rate_gflops']:.0f}{'' if row['of_rate'] >= RATE_BAR else ', missed'}",
            f"{row['difference']:.1e}{'' if row['difference'] <= EXACT_BAR else ', missed'}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _ratio(found: dict[str, float], bar: float | None) -> str:
    spread = f"{found['median']:.1f} [{found['least']:.1f}, {found['most']:.1f}]"
    return spread if bar is None else f"{spread} ({bar:g}{'' if found['median'] >= bar else ', missed'})"


def _text_rows(
    name: str, cases: Sequence[tuple[str, int]], candidates: int, turns: int, device: str, seed: int
) -> list[dict[str, Any]]:
    import open_clip
    import torch

    torch.manual_seed(seed)
    model = open_clip.create_model(name, pretrained=None, device=device).eval().requires_grad_(False)
    del model.visual  # not measured here
    tokenizer = open_clip.get_tokenizer(name)
    return [
        {"model": name, "names": data} | _text_row(model, tokenizer, class_names(data), size, candidates, turns, seed)
        for data, size in cases
    ]


def _text_row(
    model: Any, tokenizer: Any, classes: Sequence[str], num_context: int, candidates: int, turns: int, seed: int
) -> dict[str, Any]:
    import torch

    from bench.text_ways import TextWays, floor_flops, plain_flops
    from engine.boxes.clip.text_tower import TextTower
    from engine.boxes.clip.tokenized_prompts import tokenize_prompts

    tower = TextTower(model, tokenizer, classes, TEMPLATE)
    tokens = tokenize_prompts(tokenizer, classes, TEMPLATE, model.context_length)
    ways = TextWays(model, tokens)
    width, device = model.positional_embedding.shape[1], model.positional_embedding.device
    generator = torch.Generator().manual_seed(seed)
    contexts = (torch.randn(candidates, num_context, width, generator=generator) * tower.sigma).to(device)
    # Ways of one candidate at a time cost the same for each, so beyond 10 classes one is measured for all. Beyond 100
    # classes a single candidate fills a batch, and eight do not fit in memory.
    alone = candidates if len(classes) <= 10 else 1
    together = candidates if len(classes) <= 100 else 1
    rivals: dict[str, tuple[Callable[[Any], Any], int]] = {
        "peers": (ways.peers, alone),
        "own": (ways.own, alone),
        "truncated": (ways.truncated, together),
        # The dearer question, by our own tower: a ratio of what it costs.
        "per class": (lambda some: tower.encode(some[:, None].expand(-1, len(classes), -1, -1)), together),
    }
    rate, seconds = matrix_rate(device, width, seed), clock(device)
    ours = tower.encode(contexts)
    difference = 0.0
    found: dict[str, list[float]] = {way: [] for way in ("ours", "rate", *rivals)}
    for turn in range(turns if len(classes) <= 100 else max(1, turns // 5)):
        found["rate"].append(rate())
        found["ours"].append(seconds(lambda: tower.encode(contexts))[0] / candidates)
        for way, (encode, num) in rivals.items():
            spent, features = seconds(lambda: encode(contexts[:num]))  # noqa: B023 (called before the loop goes on)
            found[way].append(spent / num)
            if turn == 0:
                difference = max(difference, float((features - ours[:num]).abs().max()))
    shape = {"layers": len(model.transformer.resblocks), "width": width, "embed": model.text_projection.shape[1]}
    floor = floor_flops(tokens, num_context, **shape)
    _log.info("%d classes, %d context tokens: measured in %d turns", len(classes), num_context, len(found["ours"]))
    speeds = [floor / spent / 1e9 for spent in found["ours"]]
    return {
        "C": len(classes),
        "M": num_context,
        "path": tower.path,
        "turns": len(speeds),
        "ms": 1e3 * statistics.median(found["ours"]),
        "ratio": {way: spread_of([a / b for a, b in zip(found[way], found["ours"], strict=True)]) for way in rivals},
        "bars": list(BARS.get((len(classes), num_context), (None, None))),
        "flops_saved": plain_flops(tokens, **shape) / floor,
        "floor_gflop": floor / 1e9,
        "gflops": statistics.median(speeds),
        "rate_gflops": statistics.median(found["rate"]),
        "of_rate": statistics.median(a / b for a, b in zip(speeds, found["rate"], strict=True)),
        "difference": difference,
    }
