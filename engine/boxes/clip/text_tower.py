"""Text features of C classes for P candidates, by the fastest implementation that a model allows.

There are three, equal to fp32 rounding. `plain`: open_clip's own forward pass, a candidate at a time, differentiable.
`batched`: the same, several candidates at a time. `packed` (text_shared_prefix.py): causal towers, the shared prefix
once per candidate. The model's configuration decides; at opening, a canary compares the choice with the model.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.boxes.clip.text_shared_prefix import OwnPlan, PackedText, Plan
from engine.boxes.clip.tokenized_prompts import PromptTokens, Tokenizer, split_template, tokenize_prompts
from engine.boxes.clip.transformer_blocks import why_not
from engine.errors import RecipeError, RefusedError, TaskError

PATHS = ("auto", "packed", "batched", "plain")
TOLERANCE = 1e-5
"""Largest difference of normalised features that passes the canary; rounding gives about 1e-7, a mistake over 1e-2."""
_POSITIONS_PER_CALL = 2048
"""Token positions per call of the batched implementation, so that the partition depends on shapes only."""

_log = logging.getLogger(__name__)


class TextTower:
    """The text half of an open_clip model, for one set of classes and one template.

    Args:
        model: open_clip's CLIP, CustomTextCLIP or CoCa, in eval mode and float32.
        tokenizer: The model's own.
        classes: C names.
        template: Words with one `{}`; the words before it are the context that candidates replace.
        vocabulary: Token ids that the model knows, where these are not all of its tokenizer's.
        path: The implementation: one of `PATHS`; "auto" is the fastest that agrees with the model.

    Raises:
        TaskError: Names or a template do not fit into the model's positions or vocabulary.
        RecipeError: The path is unknown.
        RefusedError: The path is one that this model does not allow.
    """

    path: str
    """The implementation: "packed", "batched" or "plain"; "words" where the tower takes no contexts."""
    why: str
    """Why it was chosen, in words."""
    sequences: int
    """Text-tower sequences so far: C per candidate, whatever the implementation."""
    template_context: Tensor | None
    """`(M, W)` float32, the template's own token vectors; None where the tower takes words only."""
    known_rows: Tensor
    """`(V, W)` rows of the token embedding: those that the vocabulary names, or all."""
    sigma: float
    """Standard deviation of the entries of `known_rows`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        template: str,
        *,
        vocabulary: frozenset[int] | None = None,
        path: str = "auto",
    ) -> None:
        if path not in PATHS:
            raise RecipeError(f"{path=} came; a text tower goes one of {', '.join(PATHS)}; choose one")
        self.classes = tuple(classes)
        self.template = template
        self.sequences = 0
        self._model = model
        self._text: Any = getattr(model, "text", model)
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._length = _positions(self._text, tokenizer)
        self._device = next(model.parameters()).device
        self._tokens = self._tokenize(template)
        self._embedding = _token_embedding(self._text)
        weight = self._embedding.weight.detach()
        self.known_rows = weight if vocabulary is None else weight[sorted(vocabulary)]
        self.sigma = float(self.known_rows.std())
        self._packed: PackedText | None = None
        self._plans: dict[tuple[int, bool], Plan | OwnPlan] = {}
        self.path, self.why = self._choose(path)
        self.template_context = None if self.path == "words" else self._words(self._tokens)

    def encode(self, contexts: Tensor | None = None, *, path: str | None = None) -> Tensor:
        """L2-normalised text features `(P, C, E)` float32.

        Args:
            contexts: `(P, M', W)` vectors in place of the template's words before `{}`; M' need not be M. Or a
                context of its own for every class, `(P, C, M', W)`, which shares no prefix and so costs C M' tokens
                more. None: the template itself, P = 1.
            path: Another implementation for this call. Where `contexts` needs a gradient, it is "plain".

        Raises:
            RefusedError: `contexts` has a wrong shape, or the tower takes words only.
            TaskError: The prompt of a class does not fit with a context of this length.
        """
        open_ways = {"words": ("words",), "packed": PATHS[1:]}.get(self.path, PATHS[2:])
        path = path or self.path
        if path not in open_ways:
            raise RefusedError(f"{path=} came, but the way here is {self.path!r}: {self.why}; leave the path out")
        if contexts is None:
            return self._encode(self._tokens, None, path)
        contexts = self._checked(contexts)
        differentiable = torch.is_grad_enabled() and contexts.requires_grad
        return self._encode(self._tokens, contexts, "plain" if differentiable else path)

    def encode_words(self, templates: Sequence[str]) -> Tensor:
        """L2-normalised text features `(P, C, E)` float32 of P templates in words, each with one `{}`.

        Raises TaskError where a template does not fit the model or has words that it does not know.
        """
        return torch.cat([self._encode(self._tokenize(template), None, self.path) for template in templates])

    def knows(self, template: str) -> bool:
        """Whether a template fits the model and has no word outside its vocabulary."""
        try:
            self._tokenize(template)
        except TaskError:
            return False
        return True

    def _choose(self, asked: str) -> tuple[str, str]:
        """The implementation and why, after comparing it with the model on two prompts."""
        reason = why_not(self._text) or _why_no_end(self._text, self._tokens)
        if asked == "packed" and reason:
            raise RefusedError(f"path='packed' came, but {reason}; leave the path to 'auto'")
        if asked in ("auto", "packed") and not reason:
            self._packed = PackedText(self._text, self._tokens.start[0])
            difference = self._canary("packed")
            if difference <= TOLERANCE:
                return "packed", "the tower is causal and pools the end token, so the shared prefix is computed once"
            self._packed = None
            reason = f"the packed way differs from the model by {difference:.1e} (allowed: {TOLERANCE:.0e})"
            _log.warning("text tower of %s: %s; falling back to the batched way", type(self._model).__name__, reason)
        path = "plain" if asked == "plain" else "batched"
        difference = self._canary(path)
        if difference <= TOLERANCE:
            return path, reason or "asked for"
        reason = f"{type(self._text).__name__} with vectors in place of words differs from itself by {difference:.1e}"
        _log.warning("text tower of %s: %s; it takes words only", type(self._model).__name__, reason)
        return "words", reason

    def _canary(self, path: str) -> float:
        """The largest difference from the model on two prompts, those of the longest and the shortest name.

        inf where it is NaN, or the tower refuses.
        """
        sizes = [len(suffix) for suffix in self._tokens.suffixes]
        some = self._tokens.only([sizes.index(max(sizes)), sizes.index(min(sizes))])
        before, behind = split_template(self.template)
        ids = self._tokenizer([f"{before}{name}{behind}" for name in some.classes], context_length=self._length)
        with torch.no_grad():
            truth = self._model.encode_text(ids.to(self._device), normalize=True)
            try:
                words = self._words(some)[None]
                found = torch.stack([self._run(some, each, path)[0] for each in (words, words.expand(1, 2, -1, -1))])
            except RefusedError:
                return math.inf
        difference = float((found - truth).abs().max())
        return difference if math.isfinite(difference) else math.inf

    def _tokenize(self, template: str) -> PromptTokens:
        return tokenize_prompts(self._tokenizer, self.classes, template, self._length, self._vocabulary)

    def _words(self, tokens: PromptTokens) -> Tensor:
        """`(M, W)` vectors of a template's words."""
        ids = torch.tensor(tokens.context, dtype=torch.long, device=self._device)
        with torch.no_grad():
            return self._embedding(ids)

    def _checked(self, contexts: Tensor) -> Tensor:
        if self.path == "words":
            raise RefusedError(f"contexts came, but this tower takes words only: {self.why}; use another model")
        width, num_classes = self._embedding.weight.shape[1], len(self.classes)
        shape = tuple(contexts.shape)
        if len(shape) not in (3, 4) or shape[-1] != width or (len(shape) == 4 and shape[1] != num_classes):
            raise RefusedError(
                f"contexts of shape {shape} came; this tower takes (P, M, {width}) or, for a context per class, "
                f"(P, {num_classes}, M, {width}); check the prompt's shape"
            )
        return contexts.to(device=self._device, dtype=self._embedding.weight.dtype)

    def _encode(self, tokens: PromptTokens, contexts: Tensor | None, path: str) -> Tensor:
        """Features of contexts, or of a template's own words; counts the sequences."""
        self.sequences += len(tokens.classes) * (1 if contexts is None else len(contexts))
        with torch.set_grad_enabled(contexts is not None and contexts.requires_grad and torch.is_grad_enabled()):
            if path == "words":
                ids = torch.tensor(tokens.rows(), device=self._device)
                return torch.cat([self._model.encode_text(part, normalize=True) for part in self._calls(ids)])[None]
            return self._run(tokens, self._words(tokens)[None] if contexts is None else contexts, path)

    def _run(self, tokens: PromptTokens, contexts: Tensor, path: str) -> Tensor:
        """`(P, C, E)` features, by the implementation named."""
        if self._packed is not None and path == "packed":
            num_context, own = contexts.shape[-2], contexts.dim() == 4
            if tokens is not self._tokens:
                return self._packed.encode(self._packed.plan(tokens, num_context, own=own), contexts)
            if (num_context, own) not in self._plans:
                self._plans[num_context, own] = self._packed.plan(tokens, num_context, own=own)
            return self._packed.encode(self._plans[num_context, own], contexts)
        ids = torch.tensor(tokens.rows(contexts.shape[-2]), device=self._device)
        if path == "plain":
            return torch.stack([self._forward(ids, one[None], len(tokens.start)) for one in contexts])
        return self._forward(ids, contexts, len(tokens.start)).unflatten(0, (len(contexts), len(ids)))

    def _forward(self, ids: Tensor, contexts: Tensor, first: int) -> Tensor:
        """`(P * C, E)` features by open_clip's forward pass; contexts replace the embeddings from `first` on."""
        num, num_classes = len(contexts), len(ids)
        if contexts.dim() == 3:
            contexts = contexts[:, None].expand(-1, num_classes, -1, -1)
        features = []
        for pairs in self._calls(torch.arange(num * num_classes, device=self._device)):
            rows = pairs % num_classes
            with _replaced(self._embedding, contexts[pairs // num_classes, rows], first):
                features.append(self._model.encode_text(ids[rows], normalize=True))
        return torch.cat(features)

    def _calls(self, sequences: Tensor) -> tuple[Tensor, ...]:
        """Sequences, split into calls of the model."""
        return sequences.split(max(1, _POSITIONS_PER_CALL // self._length))


@contextmanager
def _replaced(embedding: nn.Embedding, contexts: Tensor, first: int) -> Iterator[None]:
    """Within the block, the embedding's output `(n, L, W)` holds `contexts` `(n, M, W)` from position `first` on.

    A hook on the embedding leaves all later steps (positions, masks, pooling) to the model.
    """
    end = first + contexts.shape[1]

    def put(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if output.dim() != 3 or len(output) != len(contexts) or output.shape[1] < end:
            raise RefusedError(
                f"the token embedding gave shape {tuple(output.shape)} where (n, positions, width) was expected: this "
                "tower does not take contexts; use another model"
            )
        return torch.cat([output[:, :first], contexts, output[:, end:]], dim=1)

    handle = embedding.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _token_embedding(text: Any) -> nn.Embedding:
    """The module that turns token ids into vectors: open_clip's, or that of a Hugging Face tower."""
    if hasattr(text, "token_embedding"):
        return text.token_embedding
    return text.transformer.get_input_embeddings()


def _why_no_end(text: Any, tokens: PromptTokens) -> str:
    """Why these prompts cannot be truncated after their end token; "" where they can."""
    if len(tokens.start) != 1:
        return f"prompts begin with {len(tokens.start)} start tokens, not one"
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    end = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
    for name, suffix, row in zip(tokens.classes, tokens.suffixes, tokens.rows(), strict=True):
        wanted = max(row) if pool == "argmax" else end
        pooled = row.index(wanted) if wanted in row else 0
        if pooled != len(tokens.start) + len(tokens.context) + len(suffix) - 1:
            return f"the model pools token {pooled} of class {name!r}, which is not its last"
    return ""


def _positions(text: Any, tokenizer: Any) -> int:
    """Text positions of the model; for a Hugging Face tower, those of its tokenizer."""
    if hasattr(text, "token_embedding"):
        return int(text.context_length)
    return int(tokenizer.context_length)
