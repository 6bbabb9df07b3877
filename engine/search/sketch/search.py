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

With a context per class (CoOp's class-specific contexts), theta has G = C parts, each of which moves the answers of one
class alone: a secant then says something of every part at once, and one round of k probes teaches k directions of each
of the G maps. That is worth far more than directions of one shared context, and fits noise as readily; so the parts are
held together as in regularised multi-task learning (Evgeniou and Pontil 2004): coupling/2 times their mean squared
departure from their mean is part of what is minimised, and is known without a query. Probes are the same for all parts.

Letters in shapes: as in protocols.py, n secants, and G parts of theta of d/G entries. Lengths in theta space are root
mean squares over a part: |x| / sqrt(d/G).
Knows nothing of prompts, of boxes, or of budgets beyond the number of candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from engine.checkpoint import Like, arrays_like, number, whole_number
from engine.errors import ArtifactError, RecipeError, RefusedError
from engine.protocols import Array, Feedback, Needs, Prefers
from engine.random_streams import Purpose, rng
from engine.search.sketch.solver import Paid, mean_loss, solve, span
from engine.search.sketch.tables import Features, Parts, Scores, Table, across, parts_of
from engine.search_space import Space
from engine.settings import Count, Positive, Range, Steps, Weight, check
from engine.tuning_loop import SearchMethod

REMEMBERED = 2**30
"""Bytes of secants held at most, whatever `memory` says."""
FLOOR = 1e-3
"""Noise variance of a secant taken right here, in units of the prior's."""
SHORT = 1e-9
"""Length under which a part has not moved."""


@dataclass(frozen=True, kw_only=True)
class Sketch(SearchMethod):
    """Keyhole's own: uses all scores, so needs fewest queries.

    Gauss-Newton on all answers at once, with a Jacobian learned from every one of them.
    """

    k: Count = 8
    """Probes a round."""
    memory: Count = 128
    """Secants remembered."""
    radii: Annotated[int, Range(1, 100)] = 2
    """Candidates tested at once, of different damping."""
    spread: Annotated[float, Range(1.0, 1000.0)] = 2.5
    """Factor between the damping of neighbouring candidates."""
    h: Positive = 0.02
    """Length of a probe, as a share of the size of the whole prompt, template and theta."""
    reach: Positive = 0.6
    """Distance, as a share of the same size, over which the map bends so that a secant says no more than the prior."""
    caution: Positive = 0.05
    """eps: what a step pays where the Jacobian is known, as a share of what it pays where nothing is."""
    damping: Positive = 0.3
    """First lambda."""
    coupling: Weight = 2.0
    """Weight of 1/2 the mean square of the parts' departures from their mean in the loss; nothing where G is 1."""
    parts: Steps | None = None
    """G, the equal parts of theta that each move one class alone; None: as the space says."""

    needs = Needs(gives=frozenset({"scores", "features"}), table=True)
    # With eight context tokens there is more room, and the map bends less. With a context for each of more than 200
    # classes, theta takes the memory of the secants.
    prefers = Prefers(tokens=8, per_class=200)

    def __post_init__(self) -> None:
        check(self)
        if not self.spread > 1:
            raise RecipeError(f"spread={self.spread} is a factor between dampings; it must be above 1")

    def start(self, space: Space, candidates: float, seed: int) -> SketchSearch:
        """A search from theta = 0 that may ask for so many candidates.

        Raises:
            RecipeError: d does not divide into the parts.
        """
        if space.dim % (self.parts or 1):
            raise RecipeError(f"parts={self.parts}: {space.dim} dimensions do not divide into so many equal parts")
        return SketchSearch(self, replace(space, parts=self.parts or space.parts), candidates, seed)


class SketchSearch:
    """The running half of `Sketch`: rounds of probes and rounds of tests in turn.

    What holds for other rows than it was taken on: text features do, so that with minibatches nothing is asked twice.
    Scores and image features do not: when the labels of a round differ from those before (rows are drawn anew), memory
    is dropped, and from then on every round begins with theta on its own rows.
    """

    def __init__(self, method: Sketch, space: Space, candidates: float, seed: int) -> None:
        self._method, self._candidates, self._seed = method, candidates, seed
        self._dim, self._parts, self._width, self._moves = space.dim, space.parts, space.width, space.moves
        self._theta = np.zeros(self._dim, np.float32)
        self._damping = method.damping
        self._step = self._spent = 0
        self._redrawn = False
        self._labels = np.zeros(0, np.int64)
        self._scale = 1.0
        self._table: Parts = {}
        """What moves, at theta; empty: not known."""
        self._fixed: Parts = {}
        """What does not move, on the rows of the last round."""
        self._U, self._mid = np.zeros((2, 0, self._parts, self._width))
        """Secants `(n, G, d/G)`: unit directions (zero for a part that did not move) and midpoints over sqrt(d/G)."""
        self._Y: Parts = {}
        self._tests: Array = np.zeros((0, self._dim), np.float32)
        """What a round of tests asks; empty: probes are next."""
        self._dampings: Array = np.zeros(0)
        """Of these tests."""

    # -----------------------------------------------------------------------------------------------------------------
    # Ask and tell

    def ask(self, limit: int) -> Array:
        if limit < 1:
            raise ValueError(f"{limit=}: a search can only be asked for at least one candidate")
        known = self._known()
        if len(self._tests):
            return np.concatenate([known, self._tests])[:limit]
        # No probes that the budget leaves no tests for.
        left = max(1, int(self._candidates) - self._spent - len(known) - self._method.radii)
        count = min(self._method.k, self._width, self._remembered, max(0, limit - len(known)), left)
        probes = self._method.h * self._unit * math.sqrt(self._width) * self._directions(count)
        return np.concatenate([known, (self._theta + np.tile(probes, self._parts)).astype(np.float32)])[:limit]

    def tell(self, thetas: Array, feedback: Feedback) -> None:
        if feedback.outputs is None or feedback.labels is None:
            raise RefusedError("sketch works on the whole table of answers; run its steps with table=True and labels")
        known = len(self._known())
        self._spent += len(thetas)
        self._step += 1
        tables, self._fixed = parts_of(feedback.outputs, len(thetas), self._moves)
        moved = [part.shape[1] for name, part in tables.items() if name != "image"]
        if self._parts > 1 and ("image" in tables or moved != [self._parts]):
            raise RefusedError(
                f"parts={self._parts}: theta falls into as many parts as there are classes and moves nothing but them; "
                "search a text context per class, or leave parts out"
            )
        shapes = {name: part.shape[1:] for name, part in tables.items()}
        held = {name: part.shape for name, part in self._table.items()}
        if held and held != shapes:
            raise ArtifactError(f"the tables that came are {shapes}, and the state's {held}")
        self._scale = feedback.outputs.scale
        labels = np.asarray(feedback.labels)
        changed = len(self._labels) > 0 and not np.array_equal(labels, self._labels)
        self._labels = labels
        if changed and not self._redrawn and set(tables) != {"text"}:
            # These answers cannot be compared with what was known: begin anew, with the base in every round.
            self._redrawn, self._table = True, {}
            self._tests, self._dampings = self._tests[:0], self._dampings[:0]
            self._forget()
            return
        sound = np.isfinite(feedback.losses)
        for part in tables.values():
            sound &= np.isfinite(part.reshape(len(part), -1)).all(1)
        if known:
            if not sound[0]:
                return
            self._table = {name: part[0] for name, part in tables.items()}
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
        """What a round must begin with: theta `(1, d)` where its table is not known, else nothing `(0, d)`."""
        return self._theta[None][: 0 if self._table and not self._redrawn else 1]

    # -----------------------------------------------------------------------------------------------------------------
    # What is known of the Jacobian

    @property
    def _remembered(self) -> int:
        """n at most."""
        size = 16 * self._dim + 4 * sum(part.size for part in self._table.values())
        return max(1, min(self._method.memory, REMEMBERED // size))

    def _split(self, thetas: Array) -> Array:
        """`(..., d)` -> `(..., G, d/G)`, over sqrt(d/G)."""
        return thetas.astype(np.float64).reshape(*thetas.shape[:-1], self._parts, -1) / math.sqrt(self._width)

    def _remember(self, thetas: Array, tables: Parts) -> None:
        """Add secants from theta to these."""
        here = self._split(self._theta)
        moved = self._split(thetas) - here
        length = np.linalg.norm(moved, axis=-1)
        use = length.max(-1) > SHORT
        if not use.any():
            return
        moved, length = moved[use], np.where(length[use] > SHORT, length[use], np.inf)
        self._U = np.concatenate([moved / length[..., None], self._U])
        self._mid = np.concatenate([here + moved / 2, self._mid])
        keep = np.sort(np.argsort(self._noise().mean(1), kind="stable")[: self._remembered])
        self._U, self._mid = self._U[keep], self._mid[keep]
        fresh, old = keep[keep < len(moved)], keep[keep >= len(moved)] - len(moved)
        for name, part in tables.items():
            base = self._table[name]
            columns = [(across(base, part[use][i], name) / length[i][:, None]).astype(np.float32) for i in fresh]
            known = [self._Y[name][old]] if name in self._Y else []
            self._Y[name] = np.concatenate([np.stack(columns), *known]) if columns else known[0]

    def _forget(self) -> None:
        self._U, self._mid, self._Y = self._U[:0], self._mid[:0], {}

    def _noise(self) -> Array:
        """`(n, G)` variances of the secants, here."""
        away = self._mid - self._split(self._theta)
        return FLOOR + (away**2).sum(-1) / (self._method.reach * self._unit) ** 2

    @property
    def _unit(self) -> float:
        """The size of the whole prompt, template and theta, in units of theta."""
        return math.sqrt(1.0 + float(np.mean(np.square(self._theta, dtype=np.float64))))

    def _directions(self, count: int) -> Array:
        """`(count, d/G)` orthonormal rows, drawn from what is not known of the Jacobian."""
        random = rng(self._seed, self._step, Purpose.PROBES)
        z = random.standard_normal((count, self._width))
        if len(self._U):
            # Matheron's rule: a draw of the prior less what the secants would have said of it ~ N(0, Cov). What parts
            # do together stands for all of them.
            U = self._U.mean(1)
            S = U @ U.T
            spread = np.sqrt(self._noise().mean(1) * np.maximum(np.diagonal(S), FLOOR))
            said = z @ U.T + spread * random.standard_normal((count, len(U)))
            z = z - np.linalg.solve(S + np.diag(spread**2), said.T).T @ U
        Q, R = np.linalg.qr(z.T)
        return (Q * np.where(np.diagonal(R) < 0, -1.0, 1.0)).T

    # -----------------------------------------------------------------------------------------------------------------
    # Steps

    def _solve(self) -> None:
        """The candidates of the next round: the best steps on the modelled table, for several dampings."""
        method = self._method
        basis = span(self._U.mean(1))
        # Of every part: the Jacobian along the basis as a mix of Y, and what a step along it pays.
        U = self._U.transpose(1, 0, 2)
        S = np.matmul(U, U.transpose(0, 2, 1))
        inverse = np.linalg.inv(S + self._noise().T[..., None] * np.eye(len(self._U)))
        facing = np.matmul(basis, U.transpose(0, 2, 1))
        mix = np.matmul(facing, inverse)
        price = (1 + method.caution) * np.eye(len(basis)) - np.matmul(mix, facing.transpose(0, 2, 1))
        here = self._split(self._theta) @ basis.T
        # The middle first: the others start from it, and it is asked even where not all can be paid.
        powers = np.arange(method.radii) - (method.radii - 1) / 2
        self._dampings = self._damping * method.spread ** powers[np.argsort(np.abs(powers), kind="stable")]
        table = self._tables(self._table, moves=True)
        found: list[Array] = []
        for damping in self._dampings:
            paid = self._paid(here, damping * price)
            found.append(solve(table, self._labels, mix, paid, found[0] if found else None))
        steps = math.sqrt(self._width) * np.stack(found) @ basis
        self._tests = (self._theta + steps.reshape(len(found), -1)).astype(np.float32)

    def _paid(self, here: Array, price: Array) -> Paid:
        """What steps `(G, K)` from `here` `(G, K)` pay: a mean over parts of 1/2 a^T price a, and the coupling."""

        def paid(a: Array) -> tuple[float, Array]:
            cost, slope = self._coupling(here + a)
            priced = np.matmul(price, a[..., None])[..., 0] / len(a)
            return cost + float(np.vdot(a, priced)) / 2, slope + priced

        return paid

    def _coupling(self, there: Array) -> tuple[float, Array]:
        """What the coupling of parts `(G, ...)` adds to the loss, and the gradient of that."""
        slope = self._method.coupling * (there - there.mean(0)) / len(there)
        return float(np.vdot(there, slope)) / 2, slope

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
        # Broyden's condition: the secant of the accepted move counts as taken at its end.
        move = self._split(thetas[best]) - self._split(self._theta)
        length = np.linalg.norm(move, axis=-1, keepdims=True)
        along = np.einsum("ngd,gd->n", self._U, move / np.maximum(length, SHORT))
        self._mid[int(np.argmax(along))] = self._split(thetas[best])
        self._theta = thetas[best].copy()
        self._table = {name: part[best] for name, part in tables.items()}

    # -----------------------------------------------------------------------------------------------------------------
    # The loss of tables

    def _tables(self, parts: Parts, *, moves: bool = False) -> Table:
        """The scores that follow from what moves and, where wanted, how the secants move them."""
        Y = self._Y if moves else {}
        if "scores" in parts:
            return Scores(base=parts["scores"], moves=Y.get("scores"))
        return Features(
            text=parts["text"] if "text" in parts else self._fixed["text"],
            image=parts["image"] if "image" in parts else self._fixed["image"],
            text_moves=Y.get("text"),
            image_moves=Y.get("image"),
            scale=self._scale,
        )

    def _objective(self, parts: Parts, theta: Array) -> float:
        """What is searched for: cross-entropy and the coupling."""
        loss, _ = mean_loss(self._tables(parts), self._labels, np.zeros((1, 0)), slopes=False)
        return loss + self._coupling(self._split(theta))[0]

    # -----------------------------------------------------------------------------------------------------------------
    # State

    _ARRAYS = ("theta", "labels", "U", "mid", "tests", "dampings")
    _PARTS = ("table", "Y")
    """What does not move, `fixed`, comes with every answer: it is not kept."""

    def state_dict(self) -> dict[str, Any]:
        state = {name: _read_only(getattr(self, f"_{name}")) for name in self._ARRAYS}
        for group in self._PARTS:
            state |= {f"{group}.{name}": _read_only(part) for name, part in getattr(self, f"_{group}").items()}
        state["scalars"] = np.array([self._step, self._spent, self._damping, self._scale, self._redrawn], np.float64)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        moving = {key.partition(".")[2] for key in state if key.startswith("table.")}
        if not (moving <= {"scores"} or moving <= {"text", "image"}):
            raise ArtifactError(f"its tables are of {', '.join(sorted(moving))}, which no box gives together")
        tables = {name: Like("float32", (None, None)) for name in moving}
        secants = [name for name in moving if f"Y.{name}" in state]
        told = arrays_like(
            state,
            {
                "theta": Like("float32", (self._dim,)),
                "labels": Like("int64", (None,)),
                "U": Like("float64", (None, self._parts, self._width)),
                "mid": Like("float64", (None, self._parts, self._width)),
                "tests": Like("float32", (None, self._dim)),
                "dampings": Like("float64", (None,)),
                "scalars": Like("float64", (5,)),
                **{f"table.{name}": like for name, like in tables.items()},
                **{f"Y.{name}": Like("float32", (len(state["U"]), *state[f"table.{name}"].shape)) for name in secants},
            },
        )
        self._table = {name: told[f"table.{name}"] for name in moving}
        self._Y = {name: told[f"Y.{name}"] for name in secants}
        for name in self._ARRAYS:
            setattr(self, f"_{name}", told[name])
        self._check()
        step, spent, self._damping, self._scale, redrawn = told["scalars"].tolist()
        self._step, self._spent = whole_number(step, "step"), whole_number(spent, "spent")
        self._redrawn = bool(whole_number(redrawn, "redrawn", most=1))
        number(self._damping, "damping", least=0.0)

    def _check(self) -> None:
        """Raise ArtifactError where the arrays of a state, each of which is sound, do not belong together."""
        if len(self._mid) != len(self._U) or len(self._dampings) != len(self._tests):
            raise ArtifactError("its secants or its tests are not as many as what belongs to them")
        if len(self._U) and (self._Y.keys() != self._table.keys() or not self._table):
            raise ArtifactError("its secants are of other tables than its own")
        if np.abs(self._U).max(initial=0.0) > 1 + 1e-6:
            raise ArtifactError("its secants have directions that are no unit vectors")


def _read_only(array: Array) -> Array:
    """A view through which nothing can be changed: no copy is made of what may be hundreds of megabytes."""
    view = array.view()
    view.flags.writeable = False
    return view
