"""The image tower of an open_clip model: pixels in [0, 1] -> L2-normalised features, plain or with pixel frames.

Three savings are exact and taken where the architecture allows: the patch projection is linear, so that of an image
and that of a frame are computed once each and added; the last layer is computed for the pooled token only; images are
normalised once. A canary at opening compares this with the plain model, which is the fall-back.

Letters in shapes: n images, B rows, P candidates, H image side, E joint width, G patches, V tower width.
Knows nothing of files, text, or of how frames are searched.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from engine.images import Preprocess

logger = logging.getLogger(__name__)

CANARY_TOLERANCE = 1e-5
"""Absolute, on normalised features: some ten times what reordering fp32 sums does."""


class ImageTower:
    """A frozen image tower in evaluation mode.

    Args:
        model: An open_clip CLIP, CustomTextCLIP or CoCa.
        preprocess: Its preprocessing; mean and standard deviation are applied here.
        batch: Images of a micro-batch: bits depend on it, so it is never chosen by load.
        path: "auto" chooses; "plain" forces the model's own forward.
    """

    def __init__(self, model: Any, preprocess: Preprocess, *, batch: int = 32, path: str = "auto") -> None:
        self.model = model
        self.preprocess = preprocess
        self.batch = batch
        self.encodes = 0
        """Images encoded so far."""
        device = next(model.parameters()).device
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1)
        self.path = "plain"
        """`patches` (projection cached, last layer for the pooled token) or `plain`."""
        self.why = "asked for" if path == "plain" else _obstacle(model.visual)
        """Why the path is plain; empty where it is not."""
        if not self.why:
            self.path = "patches"
            self._check()

    def encode(self, pixels: Tensor) -> Tensor:
        """`(n, 3, H, H)` in [0, 1] -> `(n, E)`, by the model's own forward."""
        parts = [self._plain(part) for part in pixels.split(self.batch)]
        return torch.cat(parts)

    def project(self, pixels: Tensor) -> Tensor:
        """What of `encode_framed` depends on the images alone: to be computed once and kept.

        `(n, 3, H, H)` -> `(n, G, V)` patch projections, or the pixels themselves where the path is plain.
        """
        if self.path == "plain":
            return pixels
        return torch.cat([self._patches((part - self._mean) / self._std) for part in pixels.split(self.batch)])

    def encode_framed(self, projected: Tensor, frames: Tensor) -> Tensor:
        """Features of each image under each frame.

        Args:
            projected: `project` of B images.
            frames: `(P, 3, H, H)`, added to the images in units of [0, 1]. Sums are not clipped.

        Returns:
            `(P, B, E)`. A candidate's bits do not depend on the other candidates.
        """
        if self.path == "plain":
            return torch.stack([self.encode(projected + frame) for frame in frames])
        answers = []
        for frame in frames:
            moved = self._patches(frame[None] / self._std)
            parts = [self._from_patches(part + moved) for part in projected.split(self.batch)]
            answers.append(torch.cat(parts))
        return torch.stack(answers)

    def _plain(self, pixels: Tensor) -> Tensor:
        self.encodes += len(pixels)
        return self.model.encode_image((pixels - self._mean) / self._std, normalize=True)

    def _patches(self, normalised: Tensor) -> Tensor:
        """`(n, 3, H, H)` -> `(n, G, V)`: the convolution, which is linear and has no bias."""
        return self.model.visual.conv1(normalised).flatten(2).transpose(1, 2)

    def _from_patches(self, patches: Tensor) -> Tensor:
        """`(n, G, V)` -> `(n, E)`: VisionTransformer.forward from the class token on."""
        self.encodes += len(patches)
        visual = self.model.visual
        start = visual.class_embedding.expand(len(patches), 1, -1)
        x = visual.ln_pre(torch.cat([start, patches], 1) + visual.positional_embedding)
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        pooled = visual.ln_post(_last_block(visual.transformer.resblocks[-1], x))
        return F.normalize(pooled @ visual.proj, dim=-1)

    @torch.inference_mode()
    def _check(self) -> None:
        """The canary: two images under two frames by both ways. A mismatch falls back and says so."""
        side, before = self.preprocess.size, self.encodes
        noise = torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0)).to(self._mean.device)
        images, frames = noise[:2], noise[2:] - 0.5
        fast = self.encode_framed(self.project(images), frames)
        plain = torch.stack([self.encode(images + frame) for frame in frames])
        self.encodes = before
        difference = float((fast - plain).abs().max())
        if not difference <= CANARY_TOLERANCE:
            self.path, self.why = "plain", f"the fast path differed from the model's own by {difference:.1e}"
            logger.warning("image tower: %s; taking the plain path", self.why)


def _obstacle(visual: Any) -> str:
    """Why a tower's own forward must be taken; empty where the fast path is known to be the same function."""
    if type(visual) is not VisionTransformer:
        return f"{type(visual).__name__} is not open_clip's VisionTransformer"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "it does not pool its class token"
    if visual.output_tokens or visual.proj is None:
        return "it returns more than a projected feature"
    blocks = visual.transformer.resblocks
    if len(blocks) == 0 or any(type(block) is not ResidualAttentionBlock for block in blocks):
        return "its blocks are not open_clip's plain ones"
    return ""


def _last_block(block: Any, x: Tensor) -> Tensor:
    """A residual attention block for the first token only: `(n, L, V)` -> `(n, V)`."""
    n, length, width = x.shape
    attention = block.attn
    heads = attention.num_heads
    seen = block.ln_1(x)
    weights, biases = attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(seen[:, :1], weights[:width], biases[:width])
    keys, values = F.linear(seen, weights[width:], biases[width:]).chunk(2, -1)
    query, keys, values = (t.view(n, -1, heads, width // heads).transpose(1, 2) for t in (query, keys, values))
    mixed = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).reshape(n, width)
    x = x[:, 0] + block.ls_1(attention.out_proj(mixed))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
