"""The layers of a causal text tower as plain functions of rows, and the check that a tower has such layers.

Two factors are folded into copies of the weights, exactly up to rounding: the scale of the scores into the query
projection; and those of QuickGELU, `x * sigmoid(1.702 x) = silu(1.702 x) / 1.702`, into the linear layers around it, as
SiLU is one fused operator and QuickGELU three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rows = Callable[[Tensor], Tensor]
"""A function of token rows, `(rows, in) -> (rows, out)`."""

_QUICK = 1.702
"""The slope in QuickGELU."""
_ROWS_HINT = 512
"""Rows for which oneDNN lays out a weight; other numbers of rows are as fast, by measurement."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of a residual block."""

    norm_1: Rows
    qkv: Rows
    """`(rows, W) -> (rows, 3W)`: queries (scaled), keys, values."""
    out: Rows
    norm_2: Rows
    mlp: Rows


@dataclass(frozen=True, slots=True)
class Layers:
    """A tower's residual blocks, and the last one's projections separately: there only pooled tokens need queries."""

    blocks: tuple[Layer, ...]
    last_query: Rows
    """`(rows, W) -> (rows, W)`"""
    last_key_value: Rows
    """`(rows, W) -> (rows, 2W)`"""


def why_not(text: Any) -> str:
    """Why this text tower cannot be evaluated with a shared prefix, in words; "" where it can.

    It needs a causal mask, pooling at the end token, and blocks of known parts.
    """
    from open_clip.transformer import LayerNorm, LayerNormFp32, LayerScale, QuickGELU, ResidualAttentionBlock

    if not hasattr(text, "token_embedding") or not hasattr(getattr(text, "transformer", None), "resblocks"):
        return f"{type(text).__name__} is not an open_clip text transformer"
    if getattr(text, "cls_emb", None) is not None:
        return "the tower pools an embedded class token, which sees the padding"
    mask = text.attn_mask
    if mask is None:
        return "the tower has no causal mask: every token sees the class name"
    if not torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1)):
        return "the tower's attention mask is not the causal one"
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    if pool not in ("argmax", "eos"):
        return f"the tower pools {pool!r}, not the end token"
    norms = (LayerNorm, LayerNormFp32, nn.LayerNorm)
    for block in text.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
            return f"the tower has blocks of another kind ({type(block).__name__})"
        attention, parts = block.attn, list(block.mlp)
        if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
            return "the tower's attention has projections of another kind"
        if [type(part) for part in parts] not in ([nn.Linear, nn.GELU, nn.Linear], [nn.Linear, QuickGELU, nn.Linear]):
            return f"the tower's MLP is of another kind ({', '.join(type(part).__name__ for part in parts)})"
        if any(type(scale) not in (nn.Identity, LayerScale) for scale in (block.ls_1, block.ls_2)):
            return "the tower scales its residuals in another way"
        if any(type(norm) not in norms for norm in (block.ln_1, block.ln_2)):
            return "the tower normalises in another way"
    if {parameter.dtype for parameter in text.transformer.parameters()} != {torch.float32}:
        return "the tower's weights are not float32"
    return ""


def can_prepack(device: torch.device) -> bool:
    """Whether this build of torch has oneDNN's prepacked linear layers for this device.

    They are private operators (torch.compile emits them) and may be missing; `F.linear` is the alternative.
    """
    operators = ("_linear_pointwise", "_reorder_linear_weight")
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in operators)
    )


def prepare_layers(text: Any, *, prepack: bool = True) -> Layers:
    """The tower's blocks as functions. Call `why_not` first; later changes of the weights may have no effect.

    Args:
        text: open_clip's CLIP or TextTransformer.
        prepack: Use oneDNN's prepacked linear layers where `can_prepack`: a fifth faster in measurements, with GELU
            fused, at the cost of a second copy of the weights.
    """
    device = text.token_embedding.weight.device
    make = partial(linear, prepack=prepack and can_prepack(device))
    blocks = text.transformer.resblocks
    with torch.no_grad():
        weight, bias = _projections(blocks[-1].attn)
        width = weight.shape[1]
        head, tail = (None, None) if bias is None else (bias[:width], bias[width:])
        return Layers(
            blocks=tuple(_layer(block, make) for block in blocks),
            last_query=make(weight[:width], head),
            last_key_value=make(weight[width:], tail),
        )


def norm(module: nn.LayerNorm) -> Rows:
    """A LayerNorm as a function of float32 rows `(rows, W)`."""
    return partial(
        F.layer_norm,
        normalized_shape=module.normalized_shape,
        weight=module.weight.detach() if module.weight is not None else None,
        bias=module.bias.detach() if module.bias is not None else None,
        eps=module.eps,
    )


def linear(weight: Tensor, bias: Tensor | None, activation: str = "", *, prepack: bool) -> Rows:
    """`x -> activation(x @ weight.T + bias)`; activation: "", "silu", "gelu-none" or "gelu-tanh"."""
    return (_prepacked if prepack else _portable)(weight, bias, activation)


def _layer(block: Any, make: Callable[..., Rows]) -> Layer:
    fc, activation, proj = block.mlp
    quick = not isinstance(activation, nn.GELU)
    slope = _QUICK if quick else 1.0
    up = make(_times(fc.weight, slope), _times(fc.bias, slope), "silu" if quick else f"gelu-{activation.approximate}")
    gain_1, gain_2 = (getattr(part, "gamma", None) for part in (block.ls_1, block.ls_2))
    down = make(*_scaled(_times(proj.weight, 1 / slope), proj.bias, gain_2))
    return Layer(
        norm_1=norm(block.ln_1),
        qkv=make(*_projections(block.attn)),
        out=make(*_scaled(block.attn.out_proj.weight, block.attn.out_proj.bias, gain_1)),
        norm_2=norm(block.ln_2),
        mlp=lambda x: down(up(x)),
    )


def _projections(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of queries, keys and values, with the scale of the scores in the queries'."""
    width = attention.embed_dim
    scale = attention.in_proj_weight.new_ones(3 * width)
    scale[:width] = attention.head_dim**-0.5
    bias = attention.in_proj_bias
    return attention.in_proj_weight * scale[:, None], None if bias is None else bias * scale


def _times(parameter: Any, factor: float) -> Any:
    """A tensor or None, scaled; itself, uncopied, where there is nothing to scale."""
    return parameter if parameter is None or factor == 1 else parameter * factor


def _scaled(weight: Tensor, bias: Tensor | None, gain: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A linear layer followed by LayerScale, as one linear layer."""
    if gain is None:
        return weight, bias
    return weight * gain[:, None], None if bias is None else bias * gain


def _portable(weight: Tensor, bias: Tensor | None, activation: str) -> Rows:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if activation == "silu":
        return lambda x: F.silu(F.linear(x, weight, bias), inplace=True)
    if activation:
        approximate = activation.removeprefix("gelu-")
        return lambda x: F.gelu(F.linear(x, weight, bias), approximate=approximate)
    return lambda x: F.linear(x, weight, bias)


def _prepacked(weight: Tensor, bias: Tensor | None, activation: str) -> Rows:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
    bias = None if bias is None else bias.detach().contiguous()
    operator = torch.ops.mkldnn._linear_pointwise
    if activation == "silu":
        return lambda x: operator(x, packed, bias, "swish", [], "")
    if activation:
        return lambda x: operator(x, packed, bias, "gelu", [], activation.removeprefix("gelu-"))
    return lambda x: operator(x, packed, bias, "none", [], "")
