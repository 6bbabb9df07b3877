"""`keyhole bench evaluate`: what one evaluation costs, text and image side, beside the ways that others do it.

Knows nothing of how either side is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import evaluate_image, evaluate_text
from bench.entry import Answering, Parser, enter


def main(arguments: Sequence[str] | None = None, answer: Answering = None) -> int:
    """Print the tables, and write the numbers where asked."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--sides", nargs="+", choices=("text", "image"), default=["text", "image"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one model, no ImageNet, two images, two turns")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(evaluate_text.MODELS))
    parser.add_argument("--cases", nargs="+", type=_case, default=list(evaluate_text.CASES), metavar="NAMES,M")
    parser.add_argument("--images", type=int, default=4, help="B of the image side")
    parser.add_argument("--out", type=Path, help="where to write the numbers, too")
    return enter(parser, arguments, measure, tables, answer=answer)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The numbers of the sides that were asked for."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("bench").setLevel(logging.INFO)
    where = {"models": given.models, "turns": given.turns, "device": given.device, "quick": given.quick}
    found: dict[str, Any] = {}
    if "text" in given.sides:
        found |= evaluate_text.run(cases=given.cases, **where)
    if "image" in given.sides:
        found |= evaluate_image.run(images=given.images, **where)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _case(text: str) -> tuple[str, int]:
    names, _, size = text.partition(",")
    if not size.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMES,M")
    return names, int(size)


def tables(found: dict[str, Any]) -> str:
    """Markdown."""
    sides = {"text": evaluate_text, "image": evaluate_image}
    return "\n".join(side.table(found) for name, side in sides.items() if name in found)


if __name__ == "__main__":
    sys.exit(main())
