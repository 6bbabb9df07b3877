"""Two prompts at once: theta is the concatenation of theirs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.prompts.pixels import PixelFrame, pixel_frame
from engine.prompts.text import TextContext, text_context
from engine.protocols import Array, BoxSpec, Prompts
from engine.search_space import Space


@dataclass(frozen=True, eq=False, slots=True)
class Joint:
    """A text context and a pixel frame. Each has its own unit, so a step moves both."""

    text: TextContext
    pixels: PixelFrame

    @property
    def space(self) -> Space:
        """d is the sum of both, and both move. They share no raw unit, so the unit is that of theta."""
        text, pixels = self.text.space, self.pixels.space
        return Space(dim=text.dim + pixels.dim, moves=text.moves | pixels.moves)

    def decode(self, thetas: Array) -> Prompts:
        """`(P, d)` -> contexts and frames of P candidates. Raises ValueError where `thetas` is not `(P, d)`."""
        if thetas.ndim != 2 or thetas.shape[1] != self.space.dim:
            raise ValueError(f"thetas of shape {thetas.shape}: (P, {self.space.dim}) is wanted")
        text, pixels = np.split(thetas, [self.text.space.dim], axis=1)
        context, frames = self.text.decode(text).context, self.pixels.decode(pixels).pixels
        return Prompts(count=len(thetas), context=context, pixels=frames)


def text_and_pixels(
    spec: BoxSpec,
    *,
    tokens: int | None = None,
    width: int | None = None,
    grid: int | None = None,
    subspace: str = "full",
    seed: int = 1,
) -> Joint:
    """A text context and a pixel frame, with the settings of both; `random:DIM` is a subspace of each part.

    Raises:
        RefusedError: The box does not accept one of them.
        RecipeError: A setting is impossible.
    """
    return Joint(
        text=text_context(spec, tokens=tokens, subspace=subspace, seed=seed),
        pixels=pixel_frame(spec, width=width, grid=grid, subspace=subspace, seed=seed),
    )
