"""`sketch`: search with the whole table of answers, not the mean of it.

theta -> table is the only unknown map; the loss on top of it is known. A round of probes adds secants of that map; all
secants together, each trusted as far as it is near, give an estimate of the map's Jacobian J and of how uncertain it is
in every direction. The step that is best by the true loss on the modelled table costs no query (solver.py); a few of
them, for trust regions of different size, are tested in one batch and the best is kept if it really lowers the loss.

A derivative-free Gauss-Newton method, of the family of DFO-LS (Cartis, Fiala, Marteau and Roberts 2019) and POUNDERS,
whose Broyden update has become a Gaussian process: with J ~ N(0, I) over directions, a secant (unit direction u, column
y, midpoint z) is y = J u + noise of variance  floor + |theta - z|^2 / reach^2, since the map bends. Then

    E[J^T] = U^T (U U^T + D)^-1 Y,   Cov = I - U^T (U U^T + D)^-1 U,

and a step s pays  lambda/2 s^T (eps I + Cov) s.  One fresh, noiseless secant gives Broyden's rank-one correction.

Letters in shapes: as in engine.core, and n secants. Lengths in theta space are root mean squares: |x| / sqrt(d).
Knows nothing of prompts, of boxes, or of budgets beyond the number of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import noise
from engine.core import Array, Feedback, Needs, Outputs
from engine.errors import ArtifactError, RecipeError, RefusedError
from engine.search.solver import Target, solve, sums
from engine.search.tables import Features, Linear, Scores, mixed

Parts = dict[str, Array]
"""A table, or a stack of them, by what it holds: `scores`, or `text` and `image` features."""

REMEMBERED = 2**30
"""Bytes of secants held at most, whatever `memory` says."""
FLOOR = 1e-3
"""Noise variance of a secant taken right here, in units of the prior's."""
FACING = 0.2
"""Least cosine to the current feature at which the central projection of another is trusted."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """Our table search: Gauss-Newton on all answers at once, with a Jacobian learned from every one of them."""

    k: int = 8
    """Probes a round."""
    memory: int = 128
    """Secants remembered."""
    columns: int = 48
    """Directions of leading curvature among them that the solver moves along."""
    moves: int = 0
    """How many of the probes are the last accepted moves."""
    radii: int = 2
    """Candidates tested at once, of different damping."""
    spread: float = 2.5
    """Factor between the damping of neighbouring candidates."""
    h: float = 0.02
    """Length of a probe, as a share of the size of the whole prompt, template and theta."""
    reach: float = 0.6
    """Distance, as a share of the same size, over which the map bends so that a secant says no more than the prior."""
    caution: float = 0.05
    """eps: what a step pays where the Jacobian is known, as a share of what it pays where nothing is."""
    damping: float = 0.1
    """First lambda."""
    anchor: float = 0.0
    """Share of the scores at theta = 0 in the target."""
    pull: float = 0.0
    """Weight of 1/2 the mean square of theta's entries in the loss: a pull to theta = 0."""

    needs = Needs(gives=frozenset({"scores", "features"}), table=True)
    tokens = 8
    """Context tokens of text prompts unless told otherwise: with more room the map bends less."""

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("memory", 1), ("columns", 1), ("moves", 0), ("radii", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("h", "reach", "caution", "damping"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise RecipeError(f"{name}={getattr(self, name)} must be a positive number")
        if not self.spread > 1:
            raise RecipeError(f"spread={self.spread} is a factor between dampings; it must be above 1")
        if not 0 <= self.anchor < 1:
            raise RecipeError(f"anchor={self.anchor} is a share of the target; it must be in [0, 1)")
        if not self.pull >= 0:
            raise RecipeError(f"pull={self.pull} is a weight; it must be at least 0")

    def start(self, dim: int, budget: float, seed: int) -> SketchSearch:
        """A search over `(dim,)` vectors from theta = 0; `budget` is the number of candidates it may ask for."""
        return SketchSearch(self, dim, budget, seed)


class SketchSearch:
    """The running half of `Sketch`: rounds of probes and rounds of tests in turn.

    What holds for other rows than it was taken on: text features do, so that with minibatches nothing is asked twice.
    Scores and image features do not: when the labels of a round differ from those before (rows are drawn anew), memory
    is dropped, and from then on every round begins with theta (and the template, for the anchor) on its own rows.
    """

    def __init__(self, method: Sketch, dim: int, budget: float, seed: int) -> None:
        self._method, self._dim, self._budget, self._seed = method, dim, budget, seed
        self._theta = np.zeros(dim, np.float32)
        self._damping = method.damping
        self._step = self._spent = 0
        self._redrawn = False
        self._labels = np.zeros(0, np.int64)
        self._scale = 1.0
        self._table: Parts = {}
        """What moves, at theta; empty: not known."""
        self._zero: Parts = {}
        """The same at theta = 0."""
        self._fixed: Parts = {}
        """What does not move, on the rows of the last round."""
        self._U, self._mid = np.zeros((0, dim)), np.zeros((0, dim))
        """Secants: unit directions and midpoints (both over sqrt(d))."""
        self._Y: Parts = {}
        self._moves = np.zeros((0, dim))
        """Accepted moves, the last one first."""
        self._tests, self._dampings = np.zeros((0, dim), np.float32), np.zeros(0)
        """What a round of tests asks; empty: probes are next."""

    # -----------------------------------------------------------------------------------------------------------------
    # Ask and tell

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        known = self._known()
        if len(self._tests):
            return np.concatenate([known, self._tests])[:limit]
        # No probes that the budget leaves no tests for.
        left = max(1, int(self._budget) - self._spent - len(known) - self._method.radii)
        count = min(self._method.k, self._dim, self._remembered, max(0, limit - len(known)), left)
        probes = self._method.h * self._unit * math.sqrt(self._dim) * self._directions(count)
        return np.concatenate([known, (self._theta + probes).astype(np.float32)])[:limit]

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        if feedback.outputs is None or feedback.labels is None:
            raise RefusedError("sketch works on the whole table of answers; run its steps with table=True and labels")
        known = len(self._known())
        self._spent += len(thetas)
        self._step += 1
        tables, self._fixed = _parts(feedback.outputs, len(thetas), set(self._table))
        for name in set(self._table) - set(tables):  # a lone first candidate could not tell what moves
            del self._table[name], self._zero[name]
        self._scale = feedback.outputs.scale
        labels = np.asarray(feedback.labels)
        changed = len(self._labels) > 0 and not np.array_equal(labels, self._labels)
        self._labels = labels
        if changed and not self._redrawn and set(tables) != {"text"}:
            # These answers cannot be compared with what was known: begin anew, with the base in every round.
            self._redrawn, self._table, self._tests = True, {}, self._tests[:0]
            self._forget()
            return
        sound = np.isfinite(feedback.losses)
        for part in tables.values():
            sound &= np.isfinite(part.reshape(len(part), -1)).all(1)
        if known:
            if not sound[:known].all() or len(thetas) < known:
                return
            self._table = {name: part[0] for name, part in tables.items()}
            if self._redrawn or not self._zero:
                self._zero = {name: part[known - 1] for name, part in tables.items()}
            if self._redrawn and not len(self._tests):
                self._forget()
        found = np.flatnonzero(sound[known:])
        rest = {name: part[known:][found] for name, part in tables.items()}
        if len(self._tests):
            self._told_tests(thetas[known:][found], rest, self._dampings[found])
        elif len(found):
            self._remember(thetas[known:][found], rest)
            self._solve()

    def recommend(self) -> Array:
        return self._theta.copy()

    def _known(self) -> Array:
        """What a round must begin with because its table is not known: theta, and theta = 0 for the anchor."""
        if self._table and not self._redrawn:
            return np.zeros((0, self._dim), np.float32)
        with_zero = self._redrawn and self._method.anchor > 0 and self._theta.any()
        return np.stack([self._theta, np.zeros_like(self._theta)] if with_zero else [self._theta])

    # -----------------------------------------------------------------------------------------------------------------
    # What is known of the Jacobian

    @property
    def _remembered(self) -> int:
        """n at most."""
        size = sum(part.size for part in self._table.values()) * 4
        return max(1, min(self._method.memory, REMEMBERED // size)) if size else self._method.memory

    def _remember(self, thetas: Array, tables: Parts) -> None:
        """Add secants from theta to these."""
        moved = (thetas.astype(np.float64) - self._theta) / math.sqrt(self._dim)
        length = np.linalg.norm(moved, axis=1)
        use = length > 1e-9
        if not use.any():
            return
        moved, length = moved[use], length[use]
        mid = self._theta.astype(np.float64) / math.sqrt(self._dim) + moved / 2
        self._U = np.concatenate([moved / length[:, None], self._U])
        self._mid = np.concatenate([mid, self._mid])
        keep = np.sort(np.argsort(self._noise(), kind="stable")[: self._remembered])
        self._U, self._mid = self._U[keep], self._mid[keep]
        fresh, old = keep[keep < len(moved)], keep[keep >= len(moved)] - len(moved)
        for name, part in tables.items():
            base = self._table[name]
            columns = [(_across(base, part[use][i], name) / length[i]).astype(np.float32) for i in fresh]
            known = [self._Y[name][old]] if name in self._Y else []
            self._Y[name] = np.concatenate([np.stack(columns), *known]) if columns else known[0]

    def _forget(self) -> None:
        self._U, self._mid, self._Y = self._U[:0], self._mid[:0], {}

    def _noise(self) -> Array:
        """`(n,)` variances of the secants, here."""
        away = self._mid - self._theta.astype(np.float64) / math.sqrt(self._dim)
        return FLOOR + (away**2).sum(1) / (self._method.reach * self._unit) ** 2

    @property
    def _unit(self) -> float:
        """The size of the whole prompt, template and theta, in units of theta."""
        return math.sqrt(1.0 + float(np.mean(np.square(self._theta, dtype=np.float64))))

    def _directions(self, count: int) -> Array:
        """`(count, d)` orthonormal rows: the last moves, then draws from what is not known of the Jacobian."""
        random = noise.rng(self._seed, self._step, noise.Purpose.PROBES)
        z = random.standard_normal((count, self._dim))
        if len(self._U):
            # Matheron's rule: a draw of the prior less what the secants would have said of it ~ N(0, Cov).
            S = self._U @ self._U.T
            spread = np.sqrt(self._noise() * np.diagonal(S))
            said = z @ self._U.T + spread * random.standard_normal((count, len(self._U)))
            z = z - np.linalg.solve(S + np.diag(spread**2), said.T).T @ self._U
        rows = np.concatenate([self._moves[: self._method.moves], z])[:count]
        Q, R = np.linalg.qr(rows.T)
        return (Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)).T

    # -----------------------------------------------------------------------------------------------------------------
    # Steps

    def _solve(self) -> None:
        """The candidates of the next round: the best steps on the modelled table, for several dampings."""
        method = self._method
        S = self._U @ self._U.T
        inverse = np.linalg.inv(S + np.diag(self._noise() * np.diagonal(S)))
        # An orthonormal basis of the span that the Jacobian lives in; in it the Jacobian, as a mix of Y, and what a
        # step pays.
        values, vectors = np.linalg.eigh(S)
        live = values > 1e-10 * values[-1]
        Q = (vectors[:, live] / np.sqrt(values[live])).T @ self._U
        mix = Q @ self._U.T @ inverse
        paid = (1 + method.caution) * np.eye(len(Q)) - mix @ self._U @ Q.T
        target = self._target()
        model = sums(self._linear(self._table, mix), target, np.zeros(len(Q)))
        values, vectors = np.linalg.eigh((paid + paid.T) / 2)
        cheap = (vectors / np.sqrt(np.maximum(values, 1e-9))).T
        Q, mix = cheap @ Q, cheap @ mix  # now a step a pays lambda/2 |a|^2
        if len(Q) > method.columns:
            V = np.linalg.eigh(cheap @ model.hessian @ cheap.T)[1][:, ::-1][:, : self._method.columns - 1]
            slope = cheap @ model.gradient
            rest = slope - V @ (V.T @ slope)
            V = np.concatenate([V, rest[:, None] / max(float(np.linalg.norm(rest)), 1e-300)], axis=1)
            Q, mix = V.T @ Q, V.T @ mix
        table = self._linear(self._table, mix)
        here = self._theta.astype(np.float64) / math.sqrt(self._dim)
        a: Array | None = None
        found: list[Array] = []
        dampings: Array = self._damping * method.spread ** (np.arange(method.radii)[::-1] - (method.radii - 1) / 2)
        for damping in dampings:
            a = solve(table, target, damping * np.eye(len(Q)) + method.pull * Q @ Q.T, method.pull * Q @ here, a)
            found.append(a)
        steps: Array = np.stack(found) @ Q * math.sqrt(self._dim)
        # The middle first, in case not all can be paid.
        order = np.argsort(np.abs(np.log(dampings / self._damping)), kind="stable")
        self._tests, self._dampings = (self._theta + steps).astype(np.float32)[order], dampings[order]

    def _told_tests(self, thetas: Array, tables: Parts, dampings: Array) -> None:
        self._tests, self._dampings = self._tests[:0], self._dampings[:0]
        value = self._objective(self._table, self._theta)
        values = [self._objective({n: part[p] for n, part in tables.items()}, thetas[p]) for p in range(len(thetas))]
        best = int(np.argmin(values)) if values else -1
        self._remember(thetas, tables)
        if not values or not values[best] < value:
            self._damping *= 10
            return
        self._damping = float(dampings[best])
        move = thetas[best].astype(np.float64) - self._theta
        self._moves = np.concatenate([move[None], self._moves])[: self._method.moves]
        # Broyden's condition: the secant of the accepted move counts as taken at its end.
        along = self._U @ (move / np.linalg.norm(move))
        self._mid[int(np.argmax(along))] = thetas[best].astype(np.float64) / math.sqrt(self._dim)
        self._theta = thetas[best].copy()
        self._table = {name: part[best] for name, part in tables.items()}

    # -----------------------------------------------------------------------------------------------------------------
    # The loss of tables

    def _linear(self, parts: Parts, mix: Array | None = None) -> Linear:
        """The scores that follow from what moves, and how mixed secants move them."""
        Y = self._Y if mix is not None else {}
        if "scores" in parts:
            return Scores(base=parts["scores"], tables=Y.get("scores"), mix=mix)
        text_columns = None
        if "text" in Y:
            assert mix is not None
            text_columns = mixed(mix, Y["text"])
        return Features(
            text=parts["text"] if "text" in parts else self._fixed["text"],
            image=parts["image"] if "image" in parts else self._fixed["image"],
            text_columns=text_columns,
            image_tables=Y.get("image"),
            mix=mix,
            scale=self._scale,
        )

    def _target(self) -> Target:
        weight = self._method.anchor
        return Target(labels=self._labels, weight=weight, anchor=self._linear(self._zero) if weight > 0 else None)

    def _objective(self, parts: Parts, theta: Array) -> float:
        """What is searched for: cross-entropy to the target, and the pull."""
        found = sums(self._linear(parts), self._target(), np.zeros(0), slopes=False)
        return found.loss / found.rows + 0.5 * self._method.pull * float(np.mean(np.square(theta, dtype=np.float64)))

    # -----------------------------------------------------------------------------------------------------------------
    # State

    _ARRAYS = ("theta", "labels", "U", "mid", "moves", "tests", "dampings")
    _PARTS = ("table", "zero", "fixed", "Y")

    def state_dict(self) -> dict[str, Any]:
        state = {name: getattr(self, f"_{name}").copy() for name in self._ARRAYS}
        for group in self._PARTS:
            state |= {f"{group}.{name}": part.copy() for name, part in getattr(self, f"_{group}").items()}
        state["scalars"] = np.array([self._step, self._spent, self._damping, self._scale, self._redrawn], np.float64)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["theta"].shape != (self._dim,):
            raise ArtifactError(f"the state is of {state['theta'].shape} and the search of ({self._dim},) vectors")
        for name in self._ARRAYS:
            setattr(self, f"_{name}", np.array(state[name]))
        for group in self._PARTS:
            kept = {key.partition(".")[2]: np.array(v) for key, v in state.items() if key.startswith(f"{group}.")}
            setattr(self, f"_{group}", kept)
        step, spent, self._damping, self._scale, redrawn = (float(value) for value in state["scalars"])
        self._step, self._spent, self._redrawn = int(step), int(spent), bool(redrawn)


def _parts(outputs: Outputs, count: int, known: set[str]) -> tuple[Parts, Parts]:
    """What moves with the candidate, `(P, ...)`, and what does not. Of a lone candidate that is what is known to move,
    and everything where nothing is known yet."""
    if outputs.scores is not None:
        return {"scores": outputs.scores}, {}
    if outputs.text is None or outputs.image is None:
        raise RefusedError("sketch needs scores or features; this box gives neither")
    given = {"text": outputs.text, "image": outputs.image}
    moving = {
        name: part for name, part in given.items() if len(part) == count and (count > 1 or not known or name in known)
    }
    return moving, {name: part[0] for name, part in given.items() if name not in moving}


def _across(base: Array, table: Array, name: str) -> Array:
    """The move from one table to another, float64. Features are projected centrally onto the plane that touches the
    sphere at the base: N(base + move) is the other table again, and there is no part along the base."""
    base = base.astype(np.float64)
    if name == "scores":
        return table - base
    along = np.einsum("re,re->r", table, base)[:, None]
    return table / np.maximum(along, FACING) - base
