"""What one evaluation costs, side by side: `python -m bench.evaluate`, or `keyhole bench evaluate`.

Text: open_clip models with random weights, real class names, P candidates; the published ways (text_ways.py) and ours
take turns in one process, one thread, on CPU time. A ratio is the median of the paired ratios of the turns. The matrix
rate is measured in every turn as well, so that a noisy neighbour slows both.

Knows nothing of tasks, searches or accuracy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODELS = ("ViT-B-32", "ViT-B-16")
CASES = ((10, 4), (10, 16), (100, 4), (100, 16), (1000, 16))
"""(C, M)"""
TEMPLATE = "a photo of a {}."
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree "
    "motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate "
    "poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider "
    "squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
    "wardrobe whale willow_tree wolf woman worm"
)
BARS = {(10, 4): (15, 2.3), (10, 16): (11.5, None), (100, 4): (24, 3), (100, 16): (22, 6), (1000, 16): (20, None)}
"""(C, M) -> how many times cheaper we must be than the peers' way, and than truncating and batching."""
RATE_BAR = 0.7
EXACT_BAR = 1e-6


def run(
    *,
    models: Sequence[str] = MODELS,
    cases: Sequence[tuple[int, int]] = CASES,
    candidates: int = 8,
    turns: int = 5,
    device: str = "cpu",
    quick: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure and return everything that `table` prints, as plain JSON values.

    Args:
        models: open_clip configurations; their text towers get random weights.
        cases: (C, M) pairs, C of 10, 100, 1000.
        candidates: P.
        turns: how often all ways take turns in a case; a fifth of it, at least one, at C=1000.
        device: a torch device. On one that is not a CPU, wall-clock time after synchronising.
        quick: one model, C=10 and 100, two turns.
        seed: of weights and contexts.
    """
    import torch

    if quick:
        models, cases, turns = models[:1], [case for case in cases if case[0] <= 100], min(turns, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        text = [row for name in models for row in _text_rows(name, cases, candidates, turns, device, seed)]
    finally:
        torch.set_num_threads(threads)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "threads": 1,
        "vector": torch.backends.cpu.get_cpu_capability(),
    }
    return {"machine": machine, "candidates": candidates, "text": text}


def table(result: dict[str, Any]) -> str:
    """The result of `run` as a markdown table, bars and all."""
    lines = [
        f"P={result['candidates']} candidates, {', '.join(f'{key} {value}' for key, value in result['machine'].items())}",
        "",
        "| model | C | M | ms a candidate | times cheaper than the peers' way (bar) | than truncated and batched (bar) | "
        "than open_clip's own forward | FLOPs saved at the floor | GFLOP at the floor | GFLOP/s | of the matrix rate | "
        "largest difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["text"]:
        peers, truncated, own = (row["ratio"][way] for way in ("peers", "truncated", "own"))
        lines.append(
            f"| {row['model']} | {row['C']} | {row['M']} | {row['ms']:.1f} | {_ratio(peers, row['bars'][0])} | "
            f"{_ratio(truncated, row['bars'][1])} | {_ratio(own, None)} | {row['flops_saved']:.1f} | "
            f"{row['floor_gflop']:.1f} | {row['gflops']:.0f} | {row['of_rate']:.0%} of {row['rate_gflops']:.0f} | "
            f"{row['difference']:.1e} |"
        )
    return "\n".join(lines)


def _ratio(found: dict[str, float], bar: float | None) -> str:
    spread = f"{found['median']:.1f} [{found['least']:.1f}, {found['most']:.1f}]"
    return spread if bar is None else f"{spread} ({bar:g}{'' if found['median'] >= bar else ', missed'})"


def _text_rows(
    name: str, cases: Sequence[tuple[int, int]], candidates: int, turns: int, device: str, seed: int
) -> list[dict[str, Any]]:
    import open_clip
    import torch

    torch.manual_seed(seed)
    model = open_clip.create_model(name, pretrained=None, device=device).eval().requires_grad_(False)
    del model.visual
    tokenizer = open_clip.get_tokenizer(name)
    return [
        _text_row(name, model, tokenizer, num_classes, num_context, candidates, turns, seed)
        for num_classes, num_context in cases
    ]


def _text_row(
    name: str, model: Any, tokenizer: Any, num_classes: int, num_context: int, candidates: int, turns: int, seed: int
) -> dict[str, Any]:
    import torch

    from bench.text_ways import TextWays, floor_flops, plain_flops
    from engine.boxes.prompt_tokens import tokenize_prompts
    from engine.boxes.text_tower import TextTower

    classes = class_names(num_classes)
    tower = TextTower(model, tokenizer, classes, TEMPLATE)
    tokens = tokenize_prompts(tokenizer, classes, TEMPLATE, model.context_length)
    ways = TextWays(model, tokens)
    width, device = model.positional_embedding.shape[1], model.positional_embedding.device
    generator = torch.Generator().manual_seed(seed)
    contexts = (torch.randn(candidates, num_context, width, generator=generator) * tower.sigma).to(device)
    # The ways of one candidate at a time cost the same for each: at C > 10 one stands for all, or a turn takes minutes.
    alone = 1 if num_classes > 10 else candidates
    together = candidates if num_classes <= 100 else 1
    rivals: dict[str, tuple[Callable[[Any], Any], int]] = {
        "peers": (ways.peers, alone),
        "own": (ways.own, alone),
        "truncated": (ways.truncated, together),
    }
    rate = _matrix_rate(device, width, seed)
    seconds = _clock(device)
    ours = tower.encode(contexts)
    difference = 0.0
    found: dict[str, list[float]] = {way: [] for way in ("ours", "rate", *rivals)}
    for turn in range(turns if num_classes <= 100 else max(1, turns // 5)):
        found["rate"].append(rate())
        found["ours"].append(min(seconds(lambda: tower.encode(contexts)) for _ in range(1)) / candidates)
        for way, (encode, num) in rivals.items():
            kept: list[Any] = []
            found[way].append(seconds(lambda: kept.append(encode(contexts[:num]))) / num)  # noqa: B023 (called here)
            if turn == 0:
                difference = max(difference, float((kept[0] - ours[:num]).abs().max()))
    shape = {"layers": len(model.transformer.resblocks), "width": width, "embed": model.text_projection.shape[1]}
    floor = floor_flops(tokens, num_context, **shape)
    speeds = [floor / time / 1e9 for time in found["ours"]]
    return {
        "model": name,
        "C": num_classes,
        "M": num_context,
        "path": tower.path,
        "turns": len(found["ours"]),
        "ms": 1e3 * statistics.median(found["ours"]),
        "ratio": {way: _spread([a / b for a, b in zip(found[way], found["ours"], strict=True)]) for way in rivals},
        "bars": list(BARS.get((num_classes, num_context), (None, None))),
        "flops_saved": plain_flops(tokens, **shape) / floor,
        "floor_gflop": floor / 1e9,
        "gflops": statistics.median(speeds),
        "rate_gflops": statistics.median(found["rate"]),
        "of_rate": statistics.median(a / b for a, b in zip(speeds, found["rate"], strict=True)),
        "difference": difference,
    }


def class_names(num: int) -> list[str]:
    """The names of CIFAR-10, CIFAR-100 or ImageNet, by their number."""
    import open_clip

    if num == 10:
        return CIFAR10.split()
    if num == 100:
        return [name.replace("_", " ") for name in CIFAR100.split()]
    return list(open_clip.IMAGENET_CLASSNAMES)[:num]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _clock(device: Any) -> Callable[[Callable[[], Any]], float]:
    """Seconds of a call: this thread's CPU time, or on another device wall-clock time."""
    import torch

    def on_cpu(call: Callable[[], Any]) -> float:
        begin = time.thread_time()
        call()
        return time.thread_time() - begin

    def elsewhere(call: Callable[[], Any]) -> float:
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    return on_cpu if device.type == "cpu" else elsewhere


def _matrix_rate(device: Any, width: int, seed: int) -> Callable[[], float]:
    """Measures GFLOP/s of an MLP's matrix products in this torch: the faster of its plain and its prepacked one."""
    import torch

    from engine.boxes.packed_layers import can_prepack, linear

    rows = 1024 if device.type == "cpu" else 16384
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(device)
    weight = torch.randn(4 * width, width, generator=generator).to(device)
    seconds = _clock(device)
    ways = [linear(weight, None, prepack=prepack) for prepack in {False, can_prepack(device)}]

    def measure() -> float:
        best = min(statistics.median(seconds(lambda: way(x)) for _ in range(7)) for way in ways)  # noqa: B023
        return 2 * rows * 4 * width**2 / best / 1e9

    with torch.no_grad():
        measure()
    return measure


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m bench.evaluate`: print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one model, C=10 and 100, two turns")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--cases", nargs="+", default=[f"{c},{m}" for c, m in CASES], help="C,M")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args(argv)
    cases = [(int(c), int(m)) for c, m in (case.split(",") for case in options.cases)]
    result = run(models=options.models, cases=cases, turns=options.turns, device=options.device, quick=options.quick)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
