"""Other ways to the text features of P candidates, to measure ours against: the peers', and the two between.

Each is written here as its authors run it, on the weights of one open_clip CLIP model, and returns L2-normalised
features `(P, C, E)`.

- `peers`: CBBT, BPT-VLM, ZIP and SharpZO: all 77 positions, every class, one candidate at a time, in the sequence-first
  layout of OpenAI's code.
- `own`: the same in the batch-first layout of open_clip's own forward.
- `truncated`: open_clip's layout, cut behind the last end token, all candidates side by side.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.boxes.clip.tokenized_prompts import PromptTokens


class TextWays:
    """The ways of one model for one set of prompts.

    Args:
        model: open_clip's CLIP, causal, pooling the end token.
        tokens: the prompts.
    """

    def __init__(self, model: Any, tokens: PromptTokens) -> None:
        self._model = model
        self._tokens = tokens
        self._sequence_first = copy.deepcopy(model.transformer)
        self._sequence_first.batch_first = False
        for module in self._sequence_first.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.batch_first = False

    @torch.no_grad()
    def peers(self, contexts: Tensor) -> Tensor:
        return torch.cat([self._forward(self._sequence_first, one[None], self._tokens.length) for one in contexts])

    @torch.no_grad()
    def own(self, contexts: Tensor) -> Tensor:
        return torch.cat([self._forward(self._model.transformer, one[None], self._tokens.length) for one in contexts])

    @torch.no_grad()
    def truncated(self, contexts: Tensor) -> Tensor:
        longest = max(len(suffix) for suffix in self._tokens.suffixes)
        return self._forward(self._model.transformer, contexts, 1 + contexts.shape[1] + longest)

    def _forward(self, transformer: nn.Module, contexts: Tensor, length: int) -> Tensor:
        """`(P, M, W)` contexts, all in one call of `length` positions, as open_clip's `encode_text` continues."""
        model, num_context = self._model, contexts.shape[1]
        ids = torch.tensor(self._tokens.rows(num_context), device=contexts.device)[:, :length]
        embedded = model.token_embedding(ids).expand(len(contexts), -1, -1, -1)
        shared = contexts[:, None].expand(-1, len(ids), -1, -1)
        x = torch.cat([embedded[:, :, :1], shared, embedded[:, :, 1 + num_context :]], 2).flatten(0, 1)
        x = transformer(x + model.positional_embedding[:length], attn_mask=model.attn_mask[:length, :length])
        ends = ids.argmax(-1).repeat(len(contexts))
        pooled = model.ln_final(x)[torch.arange(len(x), device=x.device), ends] @ model.text_projection
        return F.normalize(pooled, dim=-1).unflatten(0, (len(contexts), len(ids)))


def floor_flops(tokens: PromptTokens, num_context: int, *, layers: int, width: int, embed: int) -> int:
    """Multiplications and additions that one candidate needs when nothing shared is computed twice.

    With N = M + S tokens, S those of all names: every token's four projections and MLP in every layer, less the first
    layer's projections of names and what the last layer does for tokens that are not pooled; the projection to E; and
    attention, two products over the keys that each token sees. Norms, activations and softmax are not counted.
    """
    names = [len(suffix) for suffix in tokens.suffixes]
    num_names, total = len(names), sum(names)
    num_tokens = num_context + total
    linear = 2 * width**2 * (12 * layers * num_tokens - 3 * total - 10 * (num_tokens - num_names))
    seen_by_context = sum(2 + position for position in range(num_context))
    seen_by_names = sum(1 + num_context + position for size in names for position in range(1, size + 1))
    seen_by_ends = sum(1 + num_context + size for size in names)
    seen = layers * (seen_by_context + seen_by_names) - (seen_by_context + seen_by_names - seen_by_ends)
    return linear + 2 * num_names * width * embed + 4 * width * seen


def plain_flops(tokens: PromptTokens, *, layers: int, width: int, embed: int) -> int:
    """The same for one candidate with all positions of every class, as the peers run it."""
    positions = len(tokens.suffixes) * tokens.length
    linear = 2 * width**2 * 12 * layers * positions + 2 * len(tokens.suffixes) * width * embed
    return linear + 4 * width * layers * positions * tokens.length
