"""Text context vectors: M token vectors before the class name, searched around the template's own.

One context for all classes, or a context per class: CoOp's unified and class-specific contexts (arXiv 2109.01134).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.errors import RecipeError
from engine.prompts import require
from engine.prompts.subspaces import LowRank, text_subspace
from engine.protocols import Array, BoxSpec, Prompts
from engine.search_space import Space


@dataclass(frozen=True, eq=False, slots=True)
class TextContext:
    """context = origin + sigma * A(theta), with A the identity, a basis or ZIP's low-rank map.

    theta = 0 decodes to the origin, to the bit.
    """

    origin: Array
    """`(M, W)` float32."""
    sigma: float
    """One unit of theta in units of the token embedding."""
    basis: Array | LowRank | None = None
    """`(d', M * W)` float32, or ZIP's map; None: theta is the whole context, d' = M * W."""
    classes: int | None = None
    """C, where every class has a context of its own: theta is the concatenation of their C thetas, d = C d'."""

    @property
    def space(self) -> Space:
        """Only text moves; with a context per class, in C parts."""
        width, parts = self.origin.size, self.classes or 1
        if self.basis is not None:
            width = self.basis.dim if isinstance(self.basis, LowRank) else len(self.basis)
        return Space(dim=parts * width, parts=parts, unit=self.sigma, moves=frozenset({"text"}))

    def decode(self, thetas: Array) -> Prompts:
        """`(P, d)` -> contexts `(P, M, W)`, or `(P, C, M, W)`, float32. A row's bits depend on that row only.

        >>> prompt = TextContext(np.ones((2, 3), np.float32), sigma=0.5)
        >>> prompt.decode(np.full((1, 6), 2.0, np.float32)).context.tolist()
        [[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]]

        Raises ValueError where `thetas` is not `(P, d)`.
        """
        space = self.space
        if thetas.ndim != 2 or thetas.shape[1] != space.dim:
            raise ValueError(f"thetas of shape {thetas.shape}: (P, {space.dim}) is wanted")
        moves = thetas.astype(np.float32, copy=False).reshape(-1, space.width)
        if isinstance(self.basis, LowRank):
            moves = np.stack([self.basis.moves(theta) for theta in moves])
        elif self.basis is not None:
            # einsum and not BLAS, whose sums depend on P and on the number of threads.
            moves = np.stack([np.einsum("d,dk->k", theta, self.basis) for theta in moves])
        own = () if self.classes is None else (self.classes,)
        moves = moves.reshape(len(thetas), *own, *self.origin.shape)
        return Prompts(count=len(thetas), context=self.origin + np.float32(self.sigma) * moves)


def text_context(
    spec: BoxSpec,
    *,
    tokens: int | None = None,
    per_class: bool | int | None = None,
    subspace: str = "full",
    seed: int = 1,
) -> TextContext:
    """The text context of a box's template, in its full space or a subspace.

    Args:
        spec: The box's description.
        tokens: M; None: as many as the template has. For other numbers the template's token vectors are repeated
            cyclically with the ends aligned, so that its last words stay next to the class name.
        per_class: As in `own_contexts`.
        subspace: As in `text_subspace`.
        seed: For the subspace.

    Raises:
        RefusedError: The box does not accept contexts, or lacks what the subspace needs.
        RecipeError: The number of tokens or the subspace is impossible.
    """
    require(spec, "context")
    assert spec.text is not None, "a box that accepts contexts tells the template's"
    template = np.asarray(spec.text.context, np.float32)
    count = len(template) if tokens is None else tokens
    if count < 1:
        raise RecipeError(
            f"tokens={count}: a context has at least one; the template {spec.template!r} has {len(template)} tokens "
            "before {}, give tokens=M"
        )
    if len(template) == 0:
        raise RecipeError(f"template {spec.template!r} begins with {{}}: there is no context to start from; add words")
    origin = template[np.arange(-count, 0) % len(template)]
    basis = text_subspace(subspace, count, origin.shape[1], seed, spec.text.vocabulary)
    return TextContext(origin, float(spec.text.sigma), basis, own_contexts(per_class, len(spec.classes)))


def own_contexts(per_class: bool | int | None, classes: int) -> int | None:
    """The number of contexts where every class has its own; None where all classes share one.

    >>> own_contexts(True, 10), own_contexts(200, 10), own_contexts(200, 1000), own_contexts(None, 10)
    (10, 10, None, None)

    Args:
        per_class: Whether every class has its own; as a number, only for up to that many classes.
        classes: C.
    """
    if isinstance(per_class, bool) or per_class is None:
        return classes if per_class else None
    return classes if classes <= per_class else None
