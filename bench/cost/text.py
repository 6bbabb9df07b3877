"""The text side of `keyhole bench evaluate`: class names and contexts through the text tower."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from bench.cost.class_names import class_names
from bench.cost.timing import Way, clock, compared, matrix_rate, ratio, work_cells
from bench.entry import header, line

CASES = (*((names, num) for names in ("cifar10", "eurosat", "cifar100") for num in (4, 16)), ("imagenet", 16))
"""Class names and M."""
TEMPLATE = "a photo of a {}."
BARS = {(10, 4): (15, 2.3), (10, 16): (11.5, None), (100, 4): (24, 3), (100, 16): (22, 6), (1000, 16): (20, None)}
"""(C, M) -> how many times cheaper we must be than the peers' way, and than truncating and batching."""
RATE_BAR = 0.7
"""At the counted floor, the fraction of the matrix rate that we must reach."""
EXACT_BAR = 1e-6
"""The largest difference of normalised features that we may show."""
COLUMNS = (
    *("model", "names", "C", "M", "ms a candidate", "times cheaper than the peers' way (bar)"),
    *("than truncated and batched (bar)", "than open_clip's own forward", "a context per class costs"),
    *("FLOPs saved at the floor", "GFLOP at the floor", "GFLOP/s", "of the matrix rate", "largest difference"),
)

_log = logging.getLogger(__name__)


def rows(
    models: Sequence[str], cases: Sequence[tuple[str, int]], candidates: int, turns: int, device: str
) -> list[dict[str, Any]]:
    """What `table` prints, as plain JSON values.

    Args:
        models: open_clip configurations of causal towers.
        cases: Class names (see class_names.py) and M.
        candidates: P.
        turns: How often all ways take turns in a case; a fifth as often, at least once, beyond 100 classes.
        device: A torch device.
    """
    import open_clip
    import torch

    found = []
    for name in models:
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None, device=device).eval().requires_grad_(False)
        del model.visual  # not measured here
        tokenizer = open_clip.get_tokenizer(name)
        for data, num_context in cases:
            classes = class_names(data)
            told = _row(model, tokenizer, classes, num_context, candidates, turns)
            _log.info("%d classes, %d context tokens: measured", len(classes), num_context)
            found.append({"model": name, "names": data, "C": len(classes), "M": num_context, **told})
    return found


def _row(
    model: Any, tokenizer: Any, classes: Sequence[str], num_context: int, candidates: int, turns: int
) -> dict[str, Any]:
    import torch

    from bench.cost.rivals import TextWays, floor_flops, plain_flops
    from engine.boxes.clip.text_tower import TextTower
    from engine.boxes.clip.tokenized_prompts import tokenize_prompts

    tower = TextTower(model, tokenizer, classes, TEMPLATE)
    tokens = tokenize_prompts(tokenizer, classes, TEMPLATE, model.context_length)
    rivals = TextWays(model, tokens)
    width, device = model.positional_embedding.shape[1], model.positional_embedding.device
    generator = torch.Generator().manual_seed(0)
    contexts = (torch.randn(candidates, num_context, width, generator=generator) * tower.sigma).to(device)
    # Ways of one candidate at a time cost the same for each, so beyond 10 classes one is measured for all. Beyond 100
    # classes a single candidate fills a batch, and eight do not fit in memory.
    alone = contexts[: candidates if len(classes) <= 10 else 1]
    together = contexts[: candidates if len(classes) <= 100 else 1]
    ways = {
        "ours": Way(lambda: tower.encode(contexts), candidates),
        "peers": Way(lambda: rivals.peers(alone), len(alone)),
        "own": Way(lambda: rivals.own(alone), len(alone)),
        "truncated": Way(lambda: rivals.truncated(together), len(together)),
        # The dearer question, by our own tower: a ratio of what it costs.
        "per class": Way(lambda: tower.encode(together[:, None].expand(-1, len(classes), -1, -1)), len(together)),
    }
    tower.encode(contexts)  # plans and packs
    shape = {"layers": len(model.transformer.resblocks), "width": width, "embed": model.text_projection.shape[1]}
    turns = turns if len(classes) <= 100 else max(1, turns // 5)
    flops = floor_flops(tokens, num_context, **shape), plain_flops(tokens, **shape)
    told = compared(ways, matrix_rate(device, width), clock(device), turns, flops)
    return {"path": tower.path, "bars": list(BARS.get((len(classes), num_context), (None, None))), **told}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown, bars and all."""
    lines = [header(*COLUMNS)]
    for row in found:
        peers, truncated, own, each = (row["ratio"][way] for way in ("peers", "truncated", "own", "per class"))
        cells = (
            f"{row['ms']:.1f}",
            ratio(peers, row["bars"][0]),
            ratio(truncated, row["bars"][1]),
            ratio(own),
            ratio(each),
            *work_cells(row, digits=1),
            f"{row['of_rate']:.0%} of {row['rate_gflops']:.0f}{'' if row['of_rate'] >= RATE_BAR else ', missed'}",
            f"{row['difference']:.1e}{'' if row['difference'] <= EXACT_BAR else ', missed'}",
        )
        lines.append(line(row["model"], row["names"], row["C"], row["M"], *cells))
    return "\n".join(lines)
