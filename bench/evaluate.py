"""`keyhole bench evaluate`: what one evaluation costs, text and image side, beside the ways that others do it.

Knows nothing of how either side is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from bench import evaluate_image, evaluate_text


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, and write the numbers where asked."""
    parser = argparse.ArgumentParser(prog="keyhole bench evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sides", nargs="+", choices=("text", "image"), default=["text", "image"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one model, no ImageNet, two images, two turns")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(evaluate_text.MODELS))
    parser.add_argument(
        "--cases", nargs="+", default=[f"{data},{size}" for data, size in evaluate_text.CASES], metavar="NAMES,M"
    )
    parser.add_argument("--images", type=int, default=4, help="B of the image side")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("bench").setLevel(logging.INFO)
    cases = [(data, int(size)) for data, size in (case.split(",") for case in given.cases)]
    where = {"models": given.models, "turns": given.turns, "device": given.device, "quick": given.quick}
    found = {}
    if "text" in given.sides:
        found |= evaluate_text.run(cases=cases, **where)
        print(evaluate_text.table(found))
    if "image" in given.sides:
        found |= evaluate_image.run(images=given.images, **where)
        print(evaluate_image.table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
