"""How exactly a local model computes: fp32, or a named shortcut whose error is on record (`keyhole doctor --box`).

fp32 is the default everywhere: on CUDA too, where the libraries' own default (TF32) errs by more than a probe of a
search changes.
Knows nothing of towers, prompts or searches.
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
"""Name and what it does; `?precision=NAME` of a local box."""


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
    """While open, torch computes like this on this device; afterwards as before."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = precision == "tf32"
    shortened = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    try:
        with shortened:
            yield
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before
