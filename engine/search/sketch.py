"""`sketch`: search with the whole table of answers, not the mean of it.

theta -> table is the only unknown map; the loss on top of it is known. Probes give columns J_j of the table's Jacobian;
the best combination of them, by the true loss on the modelled table, costs no query (solver.py); a few candidates of
different trust region radii are then evaluated in one batch. A derivative-free Gauss-Newton method in a random
subspace, of the family of DFO-LS (Cartis, Fiala, Marteau and Roberts, 2019) and POUNDERS, with remembered columns kept
true by Broyden's correction (Broyden 1965).

Letters in shapes: as in engine.core, and K = k + memory columns.
Knows nothing of prompts, boxes or budgets beyond the number of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import noise
from engine.core import Array, Feedback, Needs, Outputs
from engine.errors import ArtifactError, RecipeError, RefusedError
from engine.search.solver import Features, Linear, Scores, Target, frozen, solve, sums

Parts = dict[str, Array]
"""A table, or a stack of columns, by what it holds: `scores`, or those of `text` and `image` that move."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Our table search: Gauss-Newton on all scores, in the subspace of few probes and remembered columns."""

    k: int = 16
    """Probes a round."""
    memory: int = 16
    """Remembered columns."""
    moves: int = 3
    """How many of the probes are the last accepted moves."""
    radii: int = 5
    """Candidates tested at once, of different damping."""
    spread: float = 4.0
    """Factor between the damping of neighbouring candidates."""
    h: float = 0.05
    """Root mean square of a probe's entries, in units of theta."""
    damping: float = 1.0
    """First lambda, on the mean square of a step's entries."""
    anchor: float = 0.2
    """Share of the zero-shot scores in the target."""
    pull: float = 0.0
    """Weight of the mean square of theta's entries in the loss: a pull to the template."""

    needs = Needs(gives=frozenset({"scores", "features"}), table=True)

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("memory", 0), ("moves", 0), ("radii", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("h", "damping"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise RecipeError(f"{name}={getattr(self, name)} must be a positive number")
        if not self.spread > 1:
            raise RecipeError(f"spread={self.spread} is a factor between dampings; it must be above 1")
        if not 0 <= self.anchor < 1:
            raise RecipeError(f"anchor={self.anchor} is a share of the target; it must be in [0, 1)")
        if not self.pull >= 0:
            raise RecipeError(f"pull={self.pull} must be at least 0")

    def start(self, dim: int, budget: float, seed: int) -> SketchSearch:
        return SketchSearch(self, dim, budget, seed)


class SketchSearch:
    """The running half of `Sketch`.

    Phases: `probe` (the base where its table is not known, and probes) and `test` (solutions for several dampings).
    """

    def __init__(self, method: Sketch, dim: int, budget: float, seed: int) -> None:
        self._method, self._dim, self._budget, self._seed = method, dim, budget, seed
        self._k = min(method.k, dim)
        self._theta = np.zeros(dim, np.float32)
        self._table: Parts | None = None
        self._zero: Parts | None = None
        self._fixed: Parts = {}
        self._scale = 1.0
        self._labels: Array | None = None
        self._value = math.nan
        self._damping = method.damping
        self._step = self._spent = 0
        self._phase = "probe"
        self._U = np.zeros((0, dim))
        self._J: Parts = {}
        self._moves = np.zeros((0, dim))
        self._tests = np.zeros((0, dim), np.float32)
        self._as = np.zeros((0, 0))
        self._resampled = False

    # ----------------------------------------------------------------------------------------------- ask and tell

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        if self._phase == "test":
            base = [self._theta[None]] if self._resampled else []
            return np.concatenate([*base, self._tests])[:limit]
        base = self._table is None or self._resampled
        left = min(limit, max(1, int(self._budget) - self._spent))
        count = min(self._k, limit - base, max(1, left - base - self._method.radii))
        probes = self._directions(max(0, count)) * self._method.h
        thetas = (self._theta + probes).astype(np.float32)
        return np.concatenate([self._theta[None], thetas]) if base else thetas

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        if feedback.outputs is None or feedback.labels is None:
            raise RefusedError("sketch works on the whole table of answers; run it with table=True and labels")
        self._spent += len(thetas)
        self._step += 1
        labels = np.asarray(feedback.labels)
        tables, fixed = _parts(feedback.outputs, len(thetas))
        sound = np.isfinite(feedback.losses)
        for part in tables.values():
            sound &= np.isfinite(part.reshape(len(part), -1)).all(1)
        self._fixed, self._scale, self._labels = fixed, feedback.outputs.scale, labels
        if self._phase == "test":
            self._told_tests(thetas, tables, sound)
        else:
            self._told_probes(thetas, tables, sound)

    def recommend(self) -> Array:
        return self._theta.copy()

    def _told_probes(self, thetas: Array, tables: Parts, sound: Array) -> None:
        first = 0
        if self._table is None or self._resampled:
            if not sound[0]:
                return
            self._table = {name: part[0] for name, part in tables.items()}
            if self._zero is None:
                self._zero = {**self._table, **self._fixed}
            first = 1
        self._value = self._objective(self._table, self._theta)
        found = np.flatnonzero(sound[first:]) + first
        if not len(found):
            return
        moved = thetas[found].astype(np.float64) - self._theta
        length = np.linalg.norm(moved, axis=1) / math.sqrt(self._dim)
        U = moved / length[:, None]
        J = {
            name: _columns(self._table[name], part[found], name) / _like(length, part) for name, part in tables.items()
        }
        if len(self._U):
            J = {name: np.concatenate([part, self._J[name]]) for name, part in J.items()}
        keep = self._k + self._method.memory
        self._U = np.concatenate([U, self._U])[:keep]
        self._J = {name: part[:keep] for name, part in J.items()}
        self._solve()

    def _solve(self) -> None:
        method = self._method
        table = self._linear(self._J)
        target = self._target()
        G = self._U @ self._U.T / self._dim
        q = method.pull * (self._U @ self._theta) / self._dim
        powers = np.arange(method.radii) - (method.radii - 1) / 2
        a, found = None, []
        for damping in self._damping * method.spread ** powers[::-1]:
            a = solve(table, target, damping * G + method.pull * G + 1e-12 * np.eye(len(G)), q, a)
            found.append(a)
        self._as = np.stack(found)
        self._tests = (self._theta + self._as @ self._U).astype(np.float32)
        self._phase = "test"

    def _told_tests(self, thetas: Array, tables: Parts, sound: Array) -> None:
        method = self._method
        self._phase = "probe"
        values = np.full(len(thetas), math.inf)
        for p in np.flatnonzero(sound):
            values[p] = self._objective({name: part[p] for name, part in tables.items()}, thetas[p])
        best = int(np.argmin(values))
        if not values[best] < self._value:
            self._damping *= 10
            return
        powers = np.arange(method.radii) - (method.radii - 1) / 2
        self._damping *= float(method.spread ** powers[::-1][best])
        a = self._as[best]
        new = {name: part[best] for name, part in tables.items()}
        move = a @ self._U
        norm = float(move @ move)
        if norm > 0:
            weights = self._U @ move / norm
            for name in self._J:
                # Broyden: what the model missed along the move is shared out by each direction's part in it.
                missed = _columns(self._table[name], new[name][None], name)[0] - np.tensordot(a, self._J[name], 1)
                self._J[name] = _tangent(self._J[name] + np.multiply.outer(weights, missed), new[name], name)
            self._moves = np.concatenate([move[None], self._moves])[: method.moves]
        self._theta, self._table, self._value = thetas[best].copy(), new, values[best]
        self._U = self._U[: method.memory]
        self._J = {name: part[: method.memory] for name, part in self._J.items()}

    # ------------------------------------------------------------------------------------------------------------

    def _directions(self, count: int) -> Array:
        """`(count, d)` orthogonal rows of root mean square 1."""
        random = noise.rng(self._seed, self._step, noise.Purpose.PROBES).standard_normal((count, self._dim))
        rows = np.concatenate([self._moves, random])[:count]
        Q, R = np.linalg.qr(rows.T)
        return (Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)).T * math.sqrt(self._dim)

    def _linear(self, columns: Parts, base: Parts | None = None) -> Linear:
        base = self._table if base is None else base
        if "scores" in base:
            return Scores(
                base=base["scores"].astype(np.float64),
                columns=columns.get("scores", np.zeros((0, *base["scores"].shape))),
            )
        whole = {**base, **{name: part for name, part in self._fixed.items() if name not in base}}
        return Features(
            text=whole["text"],
            image=whole["image"],
            scale=self._scale,
            text_columns=columns.get("text"),
            image_columns=columns.get("image"),
        )

    def _target(self) -> Target:
        anchor = frozen(self._linear({}, self._zero)) if self._method.anchor > 0 else None
        return Target(labels=self._labels, weight=self._method.anchor, anchor=anchor)

    def _objective(self, table: Parts, theta: Array) -> float:
        found = sums(self._linear({}, table), self._target(), np.zeros(0), slopes=False)
        return found.loss / found.rows + 0.5 * self._method.pull * float(np.mean(np.square(theta, dtype=np.float64)))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise ArtifactError("not yet")


def _parts(outputs: Outputs, count: int) -> tuple[Parts, Parts]:
    """What moves with the candidate, `(P, ...)` each, and what does not."""
    if outputs.scores is not None:
        return {"scores": outputs.scores}, {}
    given = {"text": outputs.text, "image": outputs.image}
    moves = {name: part for name, part in given.items() if len(part) == count and (count > 1 or name == "text")}
    return moves, {name: part[0] for name, part in given.items() if name not in moves}


def _like(values: Array, part: Array) -> Array:
    return values.reshape(-1, *[1] * (part.ndim - 1))


def _columns(base: Array, tables: Array, name: str) -> Array:
    base = base.astype(np.float64)
    if name == "scores":
        return tables - base
    along = np.einsum("pce,ce->pc", tables, base)[..., None]
    return tables / np.maximum(along, 0.2) - base


def _tangent(columns: Array, base: Array, name: str) -> Array:
    if name == "scores":
        return columns
    base = base.astype(np.float64)
    return columns - np.einsum("pce,ce->pc", columns, base)[..., None] * base
