"""The precision of a local model: fp32, or a faster one whose error `keyhole doctor --box` measures.

fp32 is the default on every device. On CUDA the libraries default to TF32, whose error is larger than the effect of a
search's probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from engine.boxes import BoxRequest
from engine.errors import RecipeError, nearest

PRECISIONS = {
    "fp32": "float32 throughout",
    "tf32": "matrix products and convolutions of float32 rounded to 10 bits of mantissa (CUDA only)",
    "bf16": "matrix products and convolutions in bfloat16, norms and sums of residuals in float32",
}
"""Name -> what it does; `?precision=NAME` of a local box."""


def precision_of(request: BoxRequest) -> str:
    """The precision that a box's options ask for, a key of `PRECISIONS`.

    Raises RecipeError where it is unknown, or would change nothing on this device.
    """
    uri, device, name = request.uri, request.device, request.options.get("precision", "fp32")
    if name not in PRECISIONS:
        raise RecipeError(f"box {uri!r}: precision={name}{nearest(name, PRECISIONS)}; it is {', '.join(PRECISIONS)}")
    if name == "tf32" and torch.device(device).type != "cuda":
        raise RecipeError(f"box {uri!r}: precision=tf32 has no effect on {device!r}; leave it out or use device=cuda")
    return name


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block, torch computes in this precision on this device."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    shortened = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    try:
        with shortened:
            yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
