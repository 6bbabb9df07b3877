"""The image tower of an open_clip model: pixels in [0, 1] -> L2-normalised features, plain or with pixel frames.

What is taken where the architecture allows, each exact up to rounding. Transformers: the patch projection is linear,
so that of an image and that of a frame are computed once each and added; the last layer is computed for the pooled
token only; linear layers are those of packed_layers.py. ResNets: batch norms are folded into the convolutions, whose
channels lie innermost. A canary at opening compares this with the plain model, which is the fall-back. Sums that are
clipped are not linear, so there nothing but the pixels is kept.

Letters in shapes: n images, B rows, P candidates, g of them together, H image side, E joint width, G patches, V tower
width, h heads.
Knows nothing of files, text, or of how frames are searched.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.boxes.clip.transformer_blocks import Layers, prepare_layers
from engine.preprocessing import Preprocess

logger = logging.getLogger(__name__)

CANARY_TOLERANCE = 1e-5
"""Absolute, on normalised features: some ten times what reordering fp32 sums does."""
TOKEN_ROWS = {True: 1024, False: 16384}
"""Tokens of a transformer's micro-batch, on a CPU or not: enough to fill a matrix product, few enough to stay near."""
PIXELS = {True: 2**18, False: 2**23}
"""Pixels of a ResNet's micro-batch, on a CPU or not."""
_PLAIN_IMAGES = 32


class ImageTower:
    """A frozen image tower in evaluation mode.

    Args:
        model: An open_clip CLIP, CustomTextCLIP or CoCa, on the device where it is to compute.
        preprocess: Its preprocessing; mean and standard deviation are applied here.
        clip: Clip the sum of an image and a frame to [0, 1], as whoever takes 8-bit images does.
        prepack: See `packed_layers.prepare_layers`; False where autocast is to see the linear layers.
        batch: Images of a micro-batch; None: by the model's shapes. Bits depend on it, so it is never chosen by load.
        path: "auto" chooses; "plain" forces the model's own forward.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Preprocess,
        *,
        clip: bool = False,
        prepack: bool = True,
        batch: int | None = None,
        path: str = "auto",
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.clip = clip
        self.encodes = 0
        """Images encoded so far."""
        device = next(model.parameters()).device
        self._on_cpu = device.type == "cpu"
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(1, 3, 1, 1)
        self._layers: Layers | None = None
        self._folded: nn.Module | None = None
        self.path = "plain"
        """`patches` (a transformer's fast way), `folded` (a ResNet's) or `plain`."""
        self.why = "asked for" if path == "plain" else _obstacle(model.visual)
        """Why the path is plain; empty where it is not."""
        if not self.why:
            if type(model.visual) is ModifiedResNet:
                self.path, self._folded = "folded", _without_norms(model.visual)
            else:
                self.path, self._layers = "patches", _layers(model.visual, prepack)
        self.batch = self._images_per_call() if batch is None else batch
        """Images of a micro-batch."""
        if not self.why:
            self._check()

    @property
    def linear(self) -> bool:
        """Whether what `project` keeps is the patch projection, and not the pixels."""
        return self.path == "patches" and not self.clip

    @property
    def projected_bytes(self) -> int:
        """Bytes of `project` of one image."""
        if not self.linear:
            return 4 * 3 * self.preprocess.size**2
        tokens, width = self.model.visual.positional_embedding.shape
        return 4 * (tokens - 1) * width

    def encode(self, pixels: Tensor) -> Tensor:
        """`(n, 3, H, H)` in [0, 1] -> `(n, E)`."""
        return torch.cat([self._features(part) for part in pixels.split(self.batch)])

    def project(self, pixels: Tensor) -> Tensor:
        """What of `encode_framed` depends on the images alone: to be computed once and kept.

        `(n, 3, H, H)` -> `(n, G, V)` patch projections, or the pixels themselves where the sum is not linear.
        """
        if not self.linear:
            return pixels
        return torch.cat([self._patches((part - self._mean) / self._std) for part in pixels.split(self.batch)])

    def encode_framed(self, projected: Tensor, frames: Tensor) -> Tensor:
        """Features of each image under each frame. Where `frames` needs a gradient, it flows.

        Args:
            projected: `project` of B images.
            frames: `(P, 3, H, H)`, added to the images in units of [0, 1].

        Returns:
            `(P, B, E)`. On a CPU a candidate's bits do not depend on the other candidates; elsewhere small batches
            of several candidates are joined, and they agree to rounding.
        """
        together = 1 if self._on_cpu else max(1, self.batch // max(1, len(projected)))
        answers = []
        for some in frames.split(together):
            moved = self._patches(some / self._std) if self.linear else some
            parts = []
            for part in projected.split(self.batch):
                sums = (part + moved[:, None]).flatten(0, 1)
                if self.clip:
                    sums = sums.clamp(0, 1)
                found = self._from_patches(sums) if self.linear else self._features(sums)
                parts.append(found.unflatten(0, (len(some), len(part))))
            answers.append(torch.cat(parts, 1))
        return torch.cat(answers)

    @torch.inference_mode()
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the bits of two fixed images' features: differs wherever features would. Not counted."""
        before = self.encodes
        features = self.encode(self._noise()[:2])
        self.encodes = before
        return hashlib.sha256(features.to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()

    def _images_per_call(self) -> int:
        if self.path == "patches":
            return max(1, TOKEN_ROWS[self._on_cpu] // len(self.model.visual.positional_embedding))
        if self.path == "folded":
            return max(1, PIXELS[self._on_cpu] // self.preprocess.size**2)
        return _PLAIN_IMAGES

    def _features(self, pixels: Tensor) -> Tensor:
        """One micro-batch `(n, 3, H, H)` in [0, 1] -> `(n, E)`, by the way taken."""
        normalised = (pixels - self._mean) / self._std
        if self.path == "patches":
            return self._from_patches(self._patches(normalised))
        self.encodes += len(pixels)
        if self._folded is not None:
            found = self._folded(normalised.contiguous(memory_format=torch.channels_last))
            return F.normalize(found.float(), dim=-1)
        return self.model.encode_image(normalised, normalize=True)

    def _patches(self, normalised: Tensor) -> Tensor:
        """`(n, 3, H, H)` -> `(n, G, V)`: the convolution, which is linear and has no bias."""
        return self.model.visual.conv1(normalised).flatten(2).transpose(1, 2)

    def _from_patches(self, patches: Tensor) -> Tensor:
        """`(n, G, V)` -> `(n, E)`: VisionTransformer.forward from the class token on."""
        self.encodes += len(patches)
        visual = self.model.visual
        start = visual.class_embedding.expand(len(patches), 1, -1)
        x = visual.ln_pre(torch.cat([start, patches], 1) + visual.positional_embedding)
        if torch.is_grad_enabled() and x.requires_grad:  # packed layers are for inference
            pooled = visual.transformer(x)[:, 0]
        else:
            assert self._layers is not None
            pooled = _pooled(self._layers, x, visual.transformer.resblocks[0].attn.num_heads)
        return F.normalize((visual.ln_post(pooled) @ visual.proj).float(), dim=-1)

    def _noise(self) -> Tensor:
        """`(4, 3, H, H)`: fixed images in [0, 1]."""
        side = self.preprocess.size
        return torch.rand((4, 3, side, side), generator=torch.Generator().manual_seed(0)).to(self._mean.device)

    @torch.inference_mode()
    def _check(self) -> None:
        """The canary: two images under two frames by both ways. A mismatch falls back and says so."""
        before, noise = self.encodes, self._noise()
        images, frames = noise[:2], noise[2:] - 0.5
        fast = self.encode_framed(self.project(images), frames)
        sums = (images + frames[:, None]).flatten(0, 1)
        sums = sums.clamp(0, 1) if self.clip else sums
        plain = self.model.encode_image((sums - self._mean) / self._std, normalize=True).view_as(fast)
        self.encodes = before
        difference = float((fast - plain).abs().max())
        if not difference <= CANARY_TOLERANCE:
            self.why = f"the fast path differed from the model's own by {difference:.1e}"
            self.path, self._layers, self._folded, self.batch = "plain", None, None, _PLAIN_IMAGES
            logger.warning("image tower: %s; taking the plain path", self.why)


def _obstacle(visual: Any) -> str:
    """Why a tower's own forward must be taken; empty where a fast path is known to be the same function."""
    if type(visual) is ModifiedResNet:
        return ""
    if type(visual) is not VisionTransformer:
        return f"{type(visual).__name__} is neither open_clip's VisionTransformer nor its ModifiedResNet"
    if visual.attn_pool is not None or visual.pool_type != "tok":
        return "it does not pool its class token"
    if visual.output_tokens or visual.proj is None:
        return "it returns more than a projected feature"
    blocks = visual.transformer.resblocks
    if len(blocks) == 0 or any(type(block) is not ResidualAttentionBlock for block in blocks):
        return "its blocks are not open_clip's plain ones"
    return ""


def _layers(visual: Any, prepack: bool) -> Layers:
    """The blocks as functions of rows. `prepare_layers` was written for text towers and looks at two of their parts."""
    parts = SimpleNamespace(weight=visual.class_embedding)
    return prepare_layers(SimpleNamespace(token_embedding=parts, transformer=visual.transformer), prepack=prepack)


def _pooled(layers: Layers, x: Tensor, num_heads: int) -> Tensor:
    """Residual attention blocks, the last for the first token only: `(n, L, V)` -> `(n, V)`."""
    n, length, width = x.shape
    x = x.reshape(n * length, width)

    def heads(rows: Tensor, parts: int) -> Tensor:
        """`(n * tokens, parts * V)` -> `(parts, n, h, tokens, V / h)`."""
        return rows.view(n, -1, parts, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)

    def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        # The scale of the scores is folded into the query projection.
        mixed = F.scaled_dot_product_attention(query, keys, values, scale=1.0)
        return mixed.transpose(1, 2).reshape(-1, width)

    *before, last = layers.blocks
    for block in before:
        query, keys, values = heads(block.qkv(block.norm_1(x)), 3)
        x += block.out(attend(query, keys, values))
        x += block.mlp(block.norm_2(x))
    seen = last.norm_1(x)
    keys, values = heads(layers.last_key_value(seen), 2)
    query = heads(layers.last_query(seen.view(n, length, width)[:, 0]), 1)[0]
    x = x.view(n, length, width)[:, 0] + last.out(attend(query, keys, values))
    return x + last.mlp(last.norm_2(x))


def _without_norms(visual: ModifiedResNet) -> nn.Module:
    """A copy whose batch norms, constants in evaluation, are folded into the convolutions before them."""
    visual = copy.deepcopy(visual)
    blocks = [visual, *(block for name in ("layer1", "layer2", "layer3", "layer4") for block in getattr(visual, name))]
    for block in blocks:
        for number in (1, 2, 3):
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{number}", nn.Identity())
        if (down := getattr(block, "downsample", None)) is not None:
            pool, conv, norm = down
            block.downsample = nn.Sequential(pool, fuse_conv_bn_eval(conv, norm))
    return visual.to(memory_format=torch.channels_last)
