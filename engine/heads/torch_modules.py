"""Heads as torch modules, the same functions of the same arrays: for exporting them behind an image tower.

Letters: as in `engine.heads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize, one_hot

from engine.errors import RefusedError
from engine.heads import Head
from engine.heads.clip_adapter import AdapterHead
from engine.heads.linear import LinearHead
from engine.heads.score_heads import ScoreAdapterHead
from engine.heads.template_mixture import MixtureHead
from engine.heads.tip import CacheHead


def torch_module(head: Head) -> nn.Module:
    """`head.scores` as a module: `(n, E)` features, or `(n, C)` scores for a head on scores -> `(n, C)` logits.

    Raises:
        RefusedError: There is no such module for this kind of head.
    """
    if head.kind not in MODULES:
        raise RefusedError(f"a head of kind {head.kind!r} has no torch module; it is one of {', '.join(MODULES)}")
    return _Module(head, MODULES[head.kind])


class _Module(nn.Module):
    """The fields of a head, arrays as buffers, and what is computed with them."""

    def __init__(self, head: Head, scores: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self._scores = scores
        for name, array in head.state_dict().items():
            if array.ndim:
                self.register_buffer(name, torch.tensor(array))
            else:
                setattr(self, name, float(array))

    def forward(self, read: Tensor) -> Tensor:
        return self._scores(self, read)


def _linear(head: Any, features: Tensor) -> Tensor:
    return features @ head.weight.T + head.bias


def _mixture(head: Any, features: Tensor) -> Tensor:
    return head.scale * (features @ head.text.T)


def _cache(head: Any, features: Tensor) -> Tensor:
    votes = one_hot(head.labels, len(head.text)).to(features.dtype)
    affinity = torch.exp(-head.beta * (1.0 - features @ head.keys.T))
    return head.scale * (features @ head.text.T) + head.alpha * (affinity @ votes)


def _adapter(head: Any, features: Tensor) -> Tensor:
    adapted = ((features @ head.down).relu() @ head.up).relu()
    mixed = normalize(head.ratio * adapted + (1 - head.ratio) * features, dim=-1)
    return head.scale * (mixed @ head.text.T)


def _score_adapter(head: Any, scores: Tensor) -> Tensor:
    x = log_softmax(scores, dim=-1)
    return x + (x @ head.into + head.bias).relu() @ head.out + head.offset


MODULES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    LinearHead.kind: _linear,
    MixtureHead.kind: _mixture,
    CacheHead.kind: _cache,
    AdapterHead.kind: _adapter,
    ScoreAdapterHead.kind: _score_adapter,
}
"""Kind of a head -> its scores, of an object with the head's fields as tensors and numbers, and of what it reads."""
