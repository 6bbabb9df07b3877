"""The artifacts that the tests of serve/ are about, by the name under which they are served."""

from __future__ import annotations

TOY = {"task": "toy:", "box": "toy:", "budget": 20}
MINI = {"task": "mini:digits", "shots": 1, "budget": 8}
KINDS = {
    "shared-context": {**TOY, "method": "momentum"},
    "context-per-class": {**TOY, "method": "sketch"},
    "linear": {**TOY, "method": "head:linear"},
    "tip": {**TOY, "method": "head:tip"},
    "score-head": {**TOY, "box": "toy:?gives=scores", "method": "head:score-adapter"},
    "top-k": {**TOY, "box": "toy:?topk=2", "method": "nevergrad:DiagonalCMA"},
    "labels": {**TOY, "box": "toy:?gives=labels", "method": "nevergrad:DiagonalCMA"},
    "digits": {**MINI, "method": "momentum"},
    "pixels": {**MINI, "method": "momentum", "prompt": {"name": "pixels", "grid": 3}},
    "words": {**MINI, "method": "words"},
}
"""name on the shelf -> the run that makes it."""
