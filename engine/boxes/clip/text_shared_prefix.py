"""Shared-prefix evaluation of a causal text tower: what candidates or classes share is computed once.

A prompt is `[start] context name [end]`. Under a causal mask the start token's keys and values are constants of the
model, the context is the same for all classes of a candidate, and a name's input to the first layer is the same for all
candidates. So a candidate costs M + S tokens, S the tokens of all names together, instead of C x 77. In the last layer
only end tokens are pooled, so only they need queries, outputs and an MLP. The result is that of the plain forward pass,
to fp32 rounding (a few 1e-7 on normalised features).

The rows of a chunk of g candidates are their `[g, M]` context tokens, then for each length n the `[g, c, n]` tokens of
the c names of that length: every part that attention needs is a contiguous slice. Chunks depend on shapes only, so the
same P, M and classes give the same bits; a candidate in another batch agrees to rounding.

With a context per class, names share the start token only: each name follows contexts of its own, C (M + n) tokens per
candidate, and the g contexts of a chunk cycle through v names.

Letters beyond the design's: g contexts of a chunk, h heads, d = W / h, n tokens of a name, c names of one length behind
each context, v distinct names cycled along the contexts: 1, or with a context per class all names of one length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.boxes.clip.tokenized_prompts import PromptTokens
from engine.boxes.clip.transformer_blocks import norm, prepare_layers

CHUNK_ROWS = {True: 1024, False: 16384}
"""Token rows of a chunk, on a CPU or not: enough to fill a matrix product, few enough for the cache."""

KeyValues = list[tuple[Tensor, Tensor]]
"""For each layer the keys and values that all names attend to, `(candidates * h, tokens, d)` each."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The names of one length."""

    size: int
    """n"""
    count: int
    """c"""
    rows: Tensor
    """`(v, c * n, W)` inputs of the first layer."""
    heads: Tensor
    """`(3, v, h, c * n, d)` queries, keys and values of the first layer."""
    mask: Tensor
    """`(n, n)`, keys by queries, added to scores: -inf where the key comes later."""

    @property
    def num_rows(self) -> int:
        return self.size * self.count


@dataclass(frozen=True, slots=True)
class Plan:
    """The names of a task behind contexts of one length: what all candidates share."""

    num_context: int
    """M'"""
    slabs: list[list[_Bucket]]
    """Names that pass through the tower together, of one length or several."""
    order: Tensor
    """`(C,)` the class of each name, slab by slab."""


@dataclass(frozen=True, slots=True)
class OwnPlan:
    """The names of a task, each behind contexts of its own."""

    buckets: list[tuple[Tensor, _Bucket]]
    """Names of one length that pass through the tower together: their classes `(v,)`, and a bucket with c = 1."""


class PackedText:
    """A causal text tower, shared by all tasks of a model.

    Args:
        text: open_clip's CLIP or TextTransformer, for which `transformer_blocks.why_not` returns "".
        start: The id of its start token.
        prepack: As in `transformer_blocks.prepare_layers`.
    """

    def __init__(self, text: Any, start: int, *, prepack: bool = True) -> None:
        self._layers = prepare_layers(text, prepack=prepack)
        self._num_heads = text.transformer.resblocks[0].attn.num_heads
        self._embedding = text.token_embedding.weight.detach()
        self._positions = text.positional_embedding.detach()
        self._final = norm(text.ln_final)
        self._projection = text.text_projection
        self._chunk_rows = CHUNK_ROWS[self._embedding.device.type == "cpu"]
        with torch.no_grad():
            self._start = self._start_key_values(start)

    def plan(self, tokens: PromptTokens, num_context: int, *, own: bool = False) -> Plan | OwnPlan:
        """What does not depend on candidates, for M' = `num_context` tokens; `own`: for a context per class.

        Raises TaskError where a prompt with a context of this length does not fit.
        """
        tokens.rows(num_context)
        return self._plan_own(tokens, num_context) if own else self._plan_shared(tokens, num_context)

    def encode(self, plan: Plan | OwnPlan, contexts: Tensor) -> Tensor:
        """`(P, M', W)` contexts, or `(P, C, M', W)` for an `OwnPlan` -> `(P, C, E)` L2-normalised, without gradient."""
        with torch.no_grad():
            if isinstance(plan, OwnPlan):
                return self._encode_own(plan, contexts)
            return self._encode_shared(plan, contexts)

    def _plan_shared(self, tokens: PromptTokens, num_context: int) -> Plan:
        suffixes = tokens.suffixes
        by_length = sorted(range(len(suffixes)), key=lambda index: len(suffixes[index]))
        num_slabs = min(len(suffixes), math.ceil(sum(map(len, suffixes)) / self._chunk_rows))
        cuts = [slab * len(by_length) // num_slabs for slab in range(num_slabs + 1)]
        with torch.no_grad():
            slabs = [
                [
                    self._bucket([suffixes[index] for index in group], 1 + num_context)
                    for _, group in groupby(by_length[begin:end], key=lambda index: len(suffixes[index]))
                ]
                for begin, end in pairwise(cuts)
            ]
        return Plan(num_context, slabs, torch.tensor(by_length, device=self._embedding.device))

    def _encode_shared(self, plan: Plan, contexts: Tensor) -> Tensor:
        size = max(1, self._chunk_rows // max(sum(bucket.num_rows for bucket in slab) for slab in plan.slabs))
        groups = []
        for some in contexts.split(size):
            prefix: KeyValues = []
            groups.append(torch.cat([self._encode(slab, some, prefix) for slab in plan.slabs], 1))
        return _in_order(torch.cat(groups), plan.order)

    def _plan_own(self, tokens: PromptTokens, num_context: int) -> OwnPlan:
        by_length = sorted(range(len(tokens.suffixes)), key=lambda index: len(tokens.suffixes[index]))
        buckets = []
        with torch.no_grad():
            for size, group in groupby(by_length, key=lambda index: len(tokens.suffixes[index])):
                for classes in torch.tensor(list(group)).split(max(1, self._chunk_rows // (num_context + size))):
                    suffixes = [tokens.suffixes[index] for index in classes]
                    bucket = self._bucket(suffixes, 1 + num_context, own=True)
                    buckets.append((classes.to(self._embedding.device), bucket))
        return OwnPlan(buckets)

    def _encode_own(self, plan: OwnPlan, contexts: Tensor) -> Tensor:
        found = []
        for classes, bucket in plan.buckets:
            num_rows = len(classes) * (contexts.shape[2] + bucket.size)
            chunks = contexts[:, classes].split(max(1, self._chunk_rows // num_rows))
            features = torch.cat([self._encode([bucket], some.flatten(0, 1), []) for some in chunks])
            found.append(features.view(len(contexts), len(classes), -1))
        return _in_order(torch.cat(found, 1), torch.cat([classes for classes, _ in plan.buckets]))

    def _bucket(self, suffixes: list[tuple[int, ...]], first: int, *, own: bool = False) -> _Bucket:
        """Names of one length that begin at position `first`, behind shared contexts or each behind its own."""
        device, size = self._embedding.device, len(suffixes[0])
        rows = self._embedding[torch.tensor(suffixes, device=device)] + self._positions[first : first + size]
        kinds, layer = len(suffixes) if own else 1, self._layers.blocks[0]
        heads = self._heads(layer.qkv(layer.norm_1(rows.flatten(0, 1))), kinds)
        return _Bucket(
            size=size,
            count=len(suffixes) // kinds,
            rows=rows.view(kinds, -1, rows.shape[-1]),
            heads=heads.unflatten(1, (kinds, self._num_heads)),
            mask=torch.full((size, size), float("-inf"), device=device).tril(-1),
        )

    def _heads(self, rows: Tensor, num: int) -> Tensor:
        """`(num * tokens, parts * W)` rows -> `(parts, num * h, tokens, d)`."""
        heads, width = self._num_heads, self._embedding.shape[1]
        parts, tokens, size = rows.shape[1] // width, rows.shape[0] // num, width // heads
        split = rows.view(num, tokens, parts, heads, size).permute(2, 0, 3, 1, 4)
        return split.reshape(parts, num * heads, tokens, size)

    def _rows(self, heads: Tensor, num: int) -> Tensor:
        """`(num * h, tokens, d)` -> `(num * tokens, W)`."""
        _, tokens, size = heads.shape
        width = self._num_heads * size
        return heads.view(num, self._num_heads, tokens, size).transpose(1, 2).reshape(num * tokens, width)

    def _start_key_values(self, start: int) -> KeyValues:
        """The start token's, `(h, 1, d)` per layer. It attends to itself only, so its output is its own value."""
        found: KeyValues = []
        x = self._embedding[start : start + 1] + self._positions[:1]
        for layer in self._layers.blocks:
            projected = layer.qkv(layer.norm_1(x))
            _, keys, values = self._heads(projected, 1)
            found.append((keys, values))
            x = x + layer.out(projected[:, 2 * x.shape[1] :])
            x = x + layer.mlp(layer.norm_2(x))
        return found

    def _encode(self, slab: Sequence[_Bucket], contexts: Tensor, prefix: KeyValues) -> Tensor:
        """The names of a slab behind g contexts `(g, M, W)` -> `(g, names, E)`, in the slab's order.

        The contexts pass through the tower with the first slab, which leaves their keys and values in `prefix`.
        """
        num, tokens, width = contexts.shape
        first_slab = not prefix
        head = num * tokens if first_slab else 0
        placed = contexts + self._positions[1 : 1 + tokens]
        names = [bucket.rows.expand(num // len(bucket.rows), -1, -1, -1).flatten(0, 2) for bucket in slab]
        x = torch.cat([placed.reshape(-1, width)[:head], *names])
        for depth, layer in enumerate(self._layers.blocks):
            last = depth == len(self._layers.blocks) - 1
            normed = layer.norm_1(x if depth else x[:head])
            projected = (self._layers.last_key_value if last else layer.qkv)(normed)
            seen = []
            if first_slab:
                *query, keys, values = self._heads(projected[:head], num)
                start_keys, start_values = self._start[depth]
                keys = torch.cat([start_keys.repeat(num, 1, 1), keys], 1)
                values = torch.cat([start_values.repeat(num, 1, 1), values], 1)
                prefix.append((keys, values))
                if not last:
                    seen.append(self._rows(_attend_causally(query[0], keys, values), num))
            if depth:
                heads = self._slab_heads(slab, normed[head:], projected[head:], num, last=last)
            else:
                heads = _first_heads(slab, num, last=last)
            for bucket, (queries, own_keys, own_values) in zip(slab, heads, strict=True):
                mask = None if last else bucket.mask
                own = _attend(queries, own_keys, own_values, *prefix[depth], bucket.size, mask)
                seen.append(self._rows(own, num))
            if last:
                x = torch.cat([part[:, -1] for part in _by_name(x[head:], slab, num)])
            x += layer.out(torch.cat(seen))
            x += layer.mlp(layer.norm_2(x))
        pooled = self._project(self._final(x)).split([num * bucket.count for bucket in slab])
        return torch.cat([part.unflatten(0, (num, -1)) for part in pooled], 1)

    def _slab_heads(
        self, slab: Sequence[_Bucket], normed: Tensor, projected: Tensor, num: int, *, last: bool
    ) -> Iterator[Sequence[Tensor]]:
        """Queries, keys and values `(g * h, c * n, d)` by bucket; in the last layer queries of end tokens only."""
        parts = projected.split([num * bucket.num_rows for bucket in slab])
        if not last:
            yield from (self._heads(part, num).unbind() for part in parts)
            return
        ends = torch.cat([part[:, -1] for part in _by_name(normed, slab, num)])
        queries = self._layers.last_query(ends).split([num * bucket.count for bucket in slab])
        for query, part in zip(queries, parts, strict=True):
            yield (*self._heads(query, num).unbind(), *self._heads(part, num).unbind())

    def _project(self, x: Tensor) -> Tensor:
        if isinstance(self._projection, nn.Linear):
            x = self._projection(x)
        elif self._projection is not None:
            x = x @ self._projection
        return F.normalize(x, dim=-1)


def _in_order(features: Tensor, classes: Tensor) -> Tensor:
    """`(P, C, E)` features of these classes, reordered as in the task."""
    placed = torch.empty_like(features)
    placed[:, classes] = features
    return placed


def _first_heads(slab: Sequence[_Bucket], num: int, *, last: bool) -> Iterator[Sequence[Tensor]]:
    """As `_slab_heads`, for the first layer, where they are the same for all candidates."""
    for bucket in slab:
        turns = num // len(bucket.rows)
        query, keys, values = bucket.heads[:, None].expand(-1, turns, -1, -1, -1, -1).flatten(1, 3)
        yield (query[:, bucket.size - 1 :: bucket.size] if last else query), keys, values


def _by_name(x: Tensor, slab: Sequence[_Bucket], num: int) -> list[Tensor]:
    """Rows of a slab -> for each bucket `(g * c, n, W)`."""
    parts = x.split([num * bucket.num_rows for bucket in slab])
    return [part.unflatten(0, (-1, bucket.size)) for part, bucket in zip(parts, slab, strict=True)]


def _attend_causally(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of `(b, M, d)` context tokens to the start token and to each other: keys, values `(b, 1 + M, d)`."""
    mask = torch.ones(query.shape[1], keys.shape[1], dtype=torch.bool, device=query.device).tril(1)
    return F.scaled_dot_product_attention(query[None], keys[None], values[None], attn_mask=mask, scale=1.0)[0]


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    size: int,
    mask: Tensor | None,
) -> Tensor:
    """Attention of c names to the prefix and each to itself, under one softmax.

    Args:
        query: `(b, c * m, d)`, b = g * h, m queries per name, scaled.
        keys, values: `(b, c * n, d)`, of the names.
        prefix_keys, prefix_values: `(b, 1 + M, d)`, shared by all names.
        size: n.
        mask: `(n, m)`, added to the scores of a name with itself.

    Returns:
        `(b, c * m, d)`.
    """
    batch, rows, width = query.shape
    count = keys.shape[1] // size
    each = rows // count
    own = torch.bmm(keys.reshape(batch * count, size, width), query.reshape(batch * count, each, width).mT)
    if mask is not None:
        own += mask
    own = own.view(batch, count, size, each).transpose(1, 2).reshape(batch, size, rows)
    weights = torch.cat([torch.bmm(prefix_keys, query.mT), own], 1).softmax(1)
    num_prefix = prefix_keys.shape[1]
    seen = torch.bmm(weights[:, :num_prefix].mT, prefix_values)
    own = weights[:, num_prefix:].view(batch, size, count, each).permute(0, 2, 3, 1)
    seen.view(batch * count, each, width).baddbmm_(
        own.reshape(batch * count, each, size), values.reshape(batch * count, size, width)
    )
    return seen
