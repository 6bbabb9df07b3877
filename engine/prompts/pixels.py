"""Pixel frames: a border added to every image, searched in full or on a coarse grid.

The frame of TVP (Zhang et al., CVPR 2024, arXiv 2404.11207), added to whole images: theta = 0 is no frame. (In TVP's
own layout the image shrinks to make room, which would change it at theta = 0.) Nothing is clamped here: a box that
takes 8-bit images clamps the sums itself (`?clip=on` for local ones).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.errors import RecipeError
from engine.prompts import require
from engine.prompts.subspaces import basis_of
from engine.protocols import Array, BoxSpec, Prompts
from engine.search_space import Space

SIGMA = 0.25
"""One unit of theta in [0, 1] pixels: about the deviation of natural images (CLIP divides by 0.27), and the root mean
square of the frame that TVP's authors ship (0.24)."""
PROPORTION = 30 / 224
"""Default width of the border as a share of the side: TVP's 30 of 224 pixels."""


@dataclass(frozen=True, eq=False, slots=True)
class PixelFrame:
    """frame = sigma * mask * A theta, with A the identity, a basis, a grid's interpolation, or basis and then grid.

    theta = 0 decodes to a frame of zeros.
    """

    side: int
    """H"""
    width: int
    """Width of the border in pixels."""
    sigma: float
    """One unit of theta in [0, 1] pixels."""
    grid: Array | None = None
    """`(H, K)` float32: weights of the K knots along a side for each pixel; None: every pixel has its own entry."""
    basis: Array | None = None
    """`(d, entries)` float32; None: theta holds the entries themselves."""

    @property
    def places(self) -> Array:
        """`(H, H)` or `(K, K)` bool, pixels or knots that have entries: the mask, or the knots that reach it."""
        mask = np.ones((self.side, self.side), bool)
        mask[self.width : self.side - self.width, self.width : self.side - self.width] = False
        if self.grid is None:
            return mask
        reach = (self.grid > 0).astype(np.int64)
        return reach.T @ mask @ reach > 0

    @property
    def space(self) -> Space:
        """Only images move. Published step sizes count in units of theta."""
        dim = 3 * int(self.places.sum()) if self.basis is None else len(self.basis)
        return Space(dim=dim, moves=frozenset({"image"}))

    def decode(self, thetas: Array) -> Prompts:
        """`(P, d)` -> frames `(P, 3, H, H)` float32. A row's bits depend on that row only.

        >>> frame = PixelFrame(side=4, width=1, sigma=0.5)
        >>> frame.decode(np.ones((1, 36), np.float32)).pixels[0, 0].tolist()
        [[0.5, 0.5, 0.5, 0.5], [0.5, 0.0, 0.0, 0.5], [0.5, 0.0, 0.0, 0.5], [0.5, 0.5, 0.5, 0.5]]

        Raises ValueError where `thetas` is not `(P, d)`.
        """
        dim, places = self.space.dim, self.places
        if thetas.ndim != 2 or thetas.shape[1] != dim:
            raise ValueError(f"thetas of shape {thetas.shape}: (P, {dim}) is wanted")
        entries = thetas.astype(np.float32, copy=False)
        if self.basis is not None:
            # einsum and not BLAS, whose sums depend on P and on the number of threads.
            entries = np.stack([np.einsum("d,dk->k", theta, self.basis) for theta in entries])
        frames = np.zeros((len(thetas), 3, *places.shape), np.float32)
        frames[:, :, places] = np.float32(self.sigma) * entries.reshape(len(thetas), 3, -1)
        if self.grid is not None:
            across = [np.einsum("ckl,jl->ckj", frame, self.grid) for frame in frames]
            frames = np.stack([np.einsum("ckj,ik->cij", frame, self.grid) for frame in across])
            inner = slice(self.width, self.side - self.width)
            frames[:, :, inner, inner] = 0
        return Prompts(count=len(thetas), pixels=frames)


def pixel_frame(
    spec: BoxSpec, *, width: int | None = None, grid: int | None = None, subspace: str = "full", seed: int = 1
) -> PixelFrame:
    """A pixel frame for a box's image size.

    Args:
        spec: The box's description.
        width: Width of the border in pixels; None: 30/224 of the side. Half the side covers the image.
        grid: Knots along a side, between which the frame is interpolated linearly; None: an entry per pixel.
        subspace: `full`, or `random:DIM`.
        seed: For the projection.

    Raises:
        RefusedError: The box does not accept pixels.
        RecipeError: The width, the grid or the subspace is impossible.
    """
    side = spec.image_size
    require(spec, "pixels")
    if width is None:
        width = default_width(side)
    if not 1 <= width <= (side + 1) // 2:
        raise RecipeError(f"width={width}: a border of an image of {side} pixels is 1 to {(side + 1) // 2} wide")
    if grid is not None and not 2 <= grid <= side:
        raise RecipeError(f"grid={grid}: a side of {side} pixels has 2 to {side} knots")
    weights = None if grid is None else _interpolation(side, grid)
    full = PixelFrame(side=side, width=width, sigma=SIGMA, grid=weights)
    if weights is not None:
        # Interpolation averages between knots; a unit of theta must still move a pixel as far as without a grid.
        share = np.outer((weights**2).sum(1), (weights**2).sum(1))
        mask = PixelFrame(side=side, width=width, sigma=SIGMA).places
        full = PixelFrame(side=side, width=width, sigma=SIGMA / float(np.sqrt(share[mask].mean())), grid=weights)
    return replace(full, basis=basis_of(subspace, full.space.dim, seed))


def default_width(side: int) -> int:
    """Default width of the border in pixels, for an image of `side` pixels."""
    return max(1, round(PROPORTION * side))


def _interpolation(side: int, knots: int) -> Array:
    """`(side, knots)` float32: linear interpolation from evenly spaced knots, the first and last at the edges."""
    at = np.linspace(0, knots - 1, side)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(knots))).astype(np.float32)
