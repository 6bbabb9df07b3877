"""`keyhole bench evaluate`: what one evaluation costs, text and image side, beside the ways that others do it.

open_clip models with random weights; all ways take turns in one process, one thread, on CPU time. A ratio is the median
of the paired ratios of the turns. The matrix rate is measured in every turn as well, so that a noisy neighbour slows
both.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from bench.cost import image, text
from bench.cost.timing import machine
from bench.entry import Bench, Parser
from engine.threads import limited

CANDIDATES = 8
MODELS = ("ViT-B-32", "ViT-B-16")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The numbers of the sides that were asked for."""
    import torch

    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("bench").setLevel(logging.INFO)
    models, cases, images, turns = given.models, given.cases, given.images, given.turns
    if given.quick:
        models, images, turns = models[:1], min(images, 2), min(turns, 2)
        cases = [case for case in cases if case[0] != "imagenet"]
    found: dict[str, Any] = {"machine": machine(given.device), "candidates": CANDIDATES, "images": images}
    with limited(1), torch.inference_mode():
        if "text" in given.sides:
            found["text"] = text.rows(models, cases, CANDIDATES, turns, given.device)
        if "image" in given.sides:
            found["image"] = image.rows(models, images, CANDIDATES, turns, given.device)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _case(word: str) -> tuple[str, int]:
    names, _, size = word.partition(",")
    if not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not NAMES,M")
    return names, int(size)


def table(found: dict[str, Any]) -> str:
    """Markdown, bars and all."""
    where = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    sides = [
        f"{what}; {where}. Median [least, most] of paired ratios.\n\n{side.table(found[name])}"
        for name, side, what in (
            ("text", text, f"Text tower, P={found['candidates']} candidates"),
            ("image", image, f"Image tower, P={found['candidates']} frames on B={found['images']} images"),
        )
        if name in found
    ]
    return "\n\n".join(sides)


def settings(parser: Parser) -> None:
    """The arguments of the command."""
    parser.add_argument("--sides", nargs="+", choices=("text", "image"), default=["text", "image"])
    parser.add_argument("--device", default="cpu", help="elsewhere wall-clock time is read, after synchronising")
    parser.add_argument("--quick", action="store_true", help="one model, no ImageNet, two images, two turns")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="open_clip's names; they get random weights")
    parser.add_argument("--cases", nargs="+", type=_case, default=list(text.CASES), metavar="NAMES,M")
    parser.add_argument("--images", type=int, default=4, help="B of the image side")
    parser.add_argument("--out", type=Path, help="where to write the numbers, too")


BENCH = Bench(settings=settings, measure=measure, table=table)
