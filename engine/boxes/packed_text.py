"""Shared-prefix evaluation of a causal text tower: what P candidates share is computed once, what C classes share too.

A prompt is `[start] context name [end]`. Under a causal mask the start token's keys and values are constants of the
model, the context is the same for all classes of a candidate, and a name's input to the first layer is the same for all
candidates. So a candidate costs M + S tokens, S the tokens of all names together, in place of C x 77. In the last layer
only end tokens are pooled, so only they get queries, outputs and an MLP. The result is the plain forward's, to fp32
rounding (a few 1e-7 on normalised features).

Rows of a chunk of g candidates: `[g, M]` context tokens, then for each length n the `[g, c, n]` tokens of the c names of
that length: every part that attention needs is a contiguous slice. Chunks follow from shapes alone, so the same P, M and
classes give the same bits; a candidate in other company agrees to rounding.

Letters beyond the design's: g candidates of a chunk, h heads, d = W / h, n tokens of a name, c names of one length.

Knows nothing of tokenizers, of images, or of towers without a causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.boxes.packed_layers import Layer, prepare_layers
from engine.boxes.prompt_tokens import PromptTokens

CHUNK_ROWS = 1024
"""Token rows of a chunk: enough to fill a matrix product, few enough to stay near the processor."""

_Heads = tuple[Tensor, Tensor, Tensor]
"""Queries (scaled), keys, values, each `(g * h, tokens, d)`."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Names of one length."""

    size: int
    """n"""
    count: int
    """c"""
    rows: Tensor
    """`(c * n, W)` inputs of the first layer."""
    heads: Tensor
    """`(3, 1, h, c * n, d)` queries, keys and values of the first layer."""
    mask: Tensor
    """`(n, n)` to add to scores, keys by queries: -inf where the key comes later."""


@dataclass(frozen=True, slots=True)
class _Slab:
    """Names that go through the tower together, by length."""

    classes: tuple[int, ...]
    buckets: tuple[_Bucket, ...]


class PackedText:
    """A causal text tower and the names of one task, ready for `encode`. Ask `why_not` first.

    Args:
        text: open_clip's CLIP or TextTransformer.
        tokens: the prompts.
        layers: what `prepare_layers(text)` gave, shared by all tasks of a model.
    """

    def __init__(self, text: nn.Module, tokens: PromptTokens, layers: tuple[Layer, ...]) -> None:
        self._text = text
        self._tokens = tokens
        self._layers = layers
        self._num_heads = text.transformer.resblocks[0].attn.num_heads
        self._plans: dict[int, tuple[_Slab, ...]] = {}
        with torch.no_grad():
            self._start = self._start_heads()

    def encode(self, contexts: Tensor) -> Tensor:
        """`(P, M', W)` contexts -> `(P, C, E)` L2-normalised features. No gradient flows."""
        with torch.no_grad():
            num, num_context, _ = contexts.shape
            if num_context not in self._plans:
                self._plans[num_context] = self._plan(num_context)
            slabs = self._plans[num_context]
            rows = num_context + sum(bucket.size * bucket.count for slab in slabs for bucket in slab.buckets)
            group = max(1, round(CHUNK_ROWS / rows))
            x = contexts + self._text.positional_embedding[1 : 1 + num_context]
            return torch.cat([self._group(x[at : at + group], slabs) for at in range(0, num, group)])

    def _group(self, contexts: Tensor, slabs: tuple[_Slab, ...]) -> Tensor:
        """`(g, M, W)` inputs -> `(g, C, E)`: the first slab computes the prefix, the others reuse its keys and values."""
        prefix: list[tuple[Tensor, Tensor]] = []
        pooled = torch.cat([self._slab(contexts, slab, prefix) for slab in slabs], 1)
        order = [index for slab in slabs for index in slab.classes]
        features = torch.empty_like(pooled)
        features[:, order] = pooled
        return features

    def _slab(self, contexts: Tensor, slab: _Slab, prefix: list[tuple[Tensor, Tensor]]) -> Tensor:
        """`(g, M, W)` inputs -> `(g, names of the slab, E)`. Fills `prefix`, keys and values by layer, if it is empty."""
        group, num_context, width = contexts.shape
        shared = bool(prefix)
        num_prefix = 0 if shared else group * num_context
        x = torch.cat(
            [contexts.reshape(-1, width)[:num_prefix]]
            + [bucket.rows.expand(group, -1, -1).reshape(-1, width) for bucket in slab.buckets]
        )
        for depth, layer in enumerate(self._layers):
            last = depth == len(self._layers) - 1
            kept = self._ends(x[num_prefix:], slab, group) if last else x
            if depth == 0:
                head, tails = x[:num_prefix], None
            normed = layer.norm_1(x[:num_prefix] if depth == 0 else x)
            prefix_heads, names = self._heads(layer, normed, slab, group, num_prefix, first=depth == 0, last=last)
            if not shared:
                start_key, start_value = self._start[depth]
                prefix.append(
                    (
                        torch.cat([start_key.repeat(group, 1, 1), prefix_heads[1]], 1),
                        torch.cat([start_value.repeat(group, 1, 1), prefix_heads[2]], 1),
                    )
                )
            ...
        return x
