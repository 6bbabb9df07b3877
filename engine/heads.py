"""Heads: classifiers trained on the features that a box returned, with exact gradients and no further query.

Each is a black-box method in its own right, and a rival that a searched prompt must beat or complement. What a grid or
a training run leaves open is chosen by the lowest cross-entropy on the validation rows. Fitted heads are small frozen
dataclasses of NumPy arrays; torch is needed to fit `linear` and `clip-adapter` only, and by no head to score.

Letters: n rows, C classes, E joint embedding width. Features are L2-normalised `(n, E)`, labels `(n,)`.
Knows nothing of boxes, prompts or images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np

from engine.errors import ArtifactError, RecipeError, RefusedError, TaskError, nearest
from engine.mixtures import MixtureHead
from engine.objectives import cross_entropy
from engine.protocols import Array, Outputs
from engine.random_streams import Purpose, rng
from engine.score_heads import ScoreAdapterHead, fit_score_adapter, log_probabilities
from engine.threads import limited

Examples = tuple[Array, Array]
"""Features `(n, E)` and their labels `(n,)`."""

STRENGTHS = tuple(float(10.0**half) for half in np.arange(-2.0, 4.5, 0.5))
"""Inverse regularisation C of `linear`, for features centred and scaled to unit mean square norm; weakest fit first."""
PATIENCE = 3
"""`linear` stops going through the grid when so many settings in a row are worse on validation than the one before."""
GDA_WEIGHTS = (0.0, *(float(10.0**half) for half in np.arange(-4.0, 2.5, 0.5)))
TIP_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TIP_SHARPNESS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
ADAPTER_RATIOS = (0.2, 0.4, 0.6, 0.8)
ADAPTER_LOOKS = 20


class Head(Protocol):
    """A trained head."""

    kind: ClassVar[str]
    """What `restore` knows it by."""
    shapes: ClassVar[Mapping[str, str]]
    """Axes of its arrays, a letter each; its other fields are numbers."""

    @property
    def width(self) -> int:
        """Numbers that it reads of an image: E, or C for a head on scores."""
        ...

    @property
    def val_loss(self) -> float:
        """Cross-entropy on the validation rows, nats."""
        ...

    def scores(self, features: Array) -> Array:
        """`(n, E)` -> `(n, C)` float32 logits."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """NumPy arrays that `restore` makes the same head of."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """`features @ weight.T + bias`: what `linear` and `gda` come down to."""

    kind: ClassVar[str] = "linear"
    shapes: ClassVar[Mapping[str, str]] = {"weight": "CE", "bias": "C"}

    weight: Array
    """`(C, E)` float32."""
    bias: Array
    """`(C,)` float32."""
    chosen: float
    """The setting that validation chose: C of `linear`, the weight of the Gaussian part of `gda`."""
    val_loss: float

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def scores(self, features: Array) -> Array:
        return features @ self.weight.T + self.bias

    def state_dict(self) -> dict[str, Array]:
        return _state(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheHead:
    """Tip-Adapter: zero-shot logits plus votes of the training images, weighted by their likeness to the image.

    `contains`: it holds the features and labels of the training images.
    """

    kind: ClassVar[str] = "tip"
    shapes: ClassVar[Mapping[str, str]] = {"text": "CE", "keys": "nE", "labels": "n"}

    text: Array
    """`(C, E)` float32."""
    keys: Array
    """`(n, E)` float32 features of the training images."""
    labels: Array
    """`(n,)` int64."""
    scale: float
    alpha: float
    """Weight of the votes."""
    beta: float
    """Sharpness of likeness."""
    val_loss: float

    @property
    def width(self) -> int:
        return self.text.shape[1]

    def scores(self, features: Array) -> Array:
        # Zhang et al. 2022 (arXiv 2111.03930), eqs. 3-5: A = exp(-beta (1 - f F^T)), logits = alpha A L + f W^T.
        affinity = np.exp(-self.beta * (1.0 - features @ self.keys.T))
        votes = affinity @ np.eye(len(self.text), dtype=np.float32)[self.labels]
        return (self.scale * (features @ self.text.T) + self.alpha * votes).astype(np.float32)

    def state_dict(self) -> dict[str, Array]:
        return _state(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class AdapterHead:
    """CLIP-Adapter: image features pass a bottleneck, blended with themselves, before they meet the text features."""

    kind: ClassVar[str] = "clip-adapter"
    shapes: ClassVar[Mapping[str, str]] = {"text": "CE", "down": "EK", "up": "KE"}

    text: Array
    """`(C, E)` float32."""
    down: Array
    """`(E, E // 4)` float32."""
    up: Array
    """`(E // 4, E)` float32."""
    scale: float
    ratio: float
    """Share of the adapted features, in [0, 1]; 0 is zero-shot."""
    val_loss: float

    @property
    def width(self) -> int:
        return self.text.shape[1]

    def scores(self, features: Array) -> Array:
        # Gao et al. 2021 (arXiv 2110.04544), eqs. 5 and 8.
        adapted = np.maximum(np.maximum(features @ self.down, 0) @ self.up, 0)
        mixed = self.ratio * adapted + (1 - self.ratio) * features
        mixed = mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
        return (self.scale * (mixed @ self.text.T)).astype(np.float32)

    def state_dict(self) -> dict[str, Array]:
        return _state(self)


def fit(
    name: str, train: Examples, val: Examples, text: Array | None = None, scale: float = 100.0, seed: int = 1
) -> Head:
    """Fit a head by name.

    >>> features = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]], np.float32)
    >>> head = fit("gda", (features, np.array([0, 0, 1, 1])), (features, np.array([0, 0, 1, 1])))
    >>> head.scores(features).argmax(-1).tolist()
    [0, 0, 1, 1]

    Args:
        name: one of `HEADS`: linear, linear-anchored, gda, tip, clip-adapter, auto, score-linear, score-adapter.
        train, val: features `(n, E)`, or scores `(n, C)` for a head on scores, and labels `(n,)`.
        text: `(C, E)` text features of the classes; `linear` and `gda` can do without.
        scale: what a cosine is multiplied by to make a logit (the box's).
        seed: for initial weights; only clip-adapter draws any.

    Raises:
        RecipeError: an unknown name.
        RefusedError: a head that needs text features, without them.
        TaskError: features and labels that do not fit together.
    """
    if name not in HEADS:
        raise RecipeError(f"head {name!r} is unknown; allowed are {', '.join(HEADS)}{nearest(name, HEADS)}")
    for split, (features, labels) in (("train", train), ("val", val)):
        if features.ndim != 2 or len(features) != len(labels) or not len(labels):
            raise TaskError(f"{split} has {features.shape=} and {labels.shape=}; give (n, E) and (n,) with n >= 1")
    if text is None and name not in ("linear", "gda") and not on_scores(name):
        raise RefusedError(f"head {name!r} needs the classes' text features, which this box does not give; use linear")
    if name in ("linear", "linear-anchored", "clip-adapter", "auto"):
        import torch  # noqa: F401  (loaded before its threads are limited)
    with limited(1):  # the same bits whoever fits
        return HEADS[name](train, val, text, scale, seed)


def restore(kind: str, state: Mapping[str, Array], classes: int | None = None) -> Head:
    """The head that `state_dict` was taken of.

    Args:
        kind: of the head.
        state: its arrays and numbers, perhaps damaged.
        classes: C, where it is known.

    Raises:
        RecipeError: an unknown kind.
        ArtifactError: something is missing or too much, or its type or shape does not fit the rest.
    """
    every: tuple[Any, ...] = (LinearHead, CacheHead, AdapterHead, ScoreAdapterHead, MixtureHead)
    kinds = {head.kind: head for head in every}
    if kind not in kinds:
        raise RecipeError(f"head kind {kind[:50]!r} is unknown; allowed are {', '.join(kinds)}{nearest(kind, kinds)}")
    names = {field.name for field in fields(kinds[kind])}
    if wrong := sorted(names ^ set(state)):
        raise ArtifactError(f"head {kind!r} {'lacks' if wrong[0] in names else 'has no'} {wrong[0][:50]!r}")
    sizes = {} if classes is None else {"C": classes}
    for name, array in state.items():
        letters: str = kinds[kind].shapes.get(name, "")
        dtype = np.int64 if name == "labels" else np.float32 if letters else np.float64
        if (array.dtype, array.ndim) != (dtype, len(letters)) or any(
            sizes.setdefault(letter, count) != count for letter, count in zip(letters, array.shape, strict=True)
        ):
            raise ArtifactError(f"head {kind!r}: {name} is {array.dtype} {array.shape}, which does not fit the rest")
    if "labels" in state and not ((state["labels"] >= 0) & (state["labels"] < sizes["C"])).all():
        raise ArtifactError(f"head {kind!r}: labels name classes that there are not")
    return _from_state(kinds[kind], state)


def fit_linear(
    train_features: Array,
    train_labels: Array,
    val_features: Array,
    val_labels: Array,
    text: Array | None = None,
    *,
    scale: float = 100.0,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearHead:
    """Multinomial logistic regression, its regularisation chosen on validation.

    Minimises `C * sum cross-entropy + |V|^2 / 2` over `x V^T + b`, x being features centred and scaled to unit mean
    square norm, so that one grid of C serves every box.

    With `text`, the zero-shot-anchored variant: the logits are `scale * a_c (f . t_c) + x . v_c + b_c` with a
    multiplier a_c a class, as in LP++ (Huang et al. 2024, arXiv 2404.02285), and `|V|^2 + |b|^2 + |a - 1|^2` is
    penalised; C = 0, which is zero-shot itself, is in the grid. LP++ starts from class means and stops early instead;
    a penalty makes the answer independent of the number of steps.

    Args:
        train_features, val_features: `(n, E)`.
        train_labels, val_labels: `(n,)`; every class occurs in training.
        text: `(C, E)` text features, for the anchored variant.
        scale: what a cosine is multiplied by to make a logit.
        strengths: the grid of C, ascending.
    """
    import torch
    from torch.nn.functional import cross_entropy as torch_cross_entropy

    num_classes = len(text) if text is not None else int(train_labels.max()) + 1
    mean = train_features.mean(0, dtype=np.float64)
    spread = float(np.sqrt(((train_features - mean) ** 2).sum(1).mean())) or 1.0
    rows = torch.from_numpy((train_features - mean) / spread)
    labels = torch.from_numpy(train_labels.astype(np.int64))
    shape = (num_classes, rows.shape[1])
    anchor = torch.from_numpy(np.zeros(shape) if text is None else text.astype(np.float64) * scale)
    cosines = torch.from_numpy(train_features.astype(np.float64)) @ anchor.T
    weight, bias = torch.zeros(shape, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    gain = torch.ones(num_classes, dtype=torch.float64)
    parameters = [weight, bias] if text is None else [weight, bias, gain]
    for parameter in parameters:
        parameter.requires_grad_()

    def head(strength: float) -> LinearHead:
        turned = weight.detach().numpy() / spread
        full = turned + (gain.detach()[:, None] * anchor).numpy()
        return _scored(
            (val_features, val_labels), weight=full, bias=bias.detach().numpy() - turned @ mean, chosen=strength
        )

    heads = [] if text is None else [head(0.0)]
    for strength in strengths:
        # From strong to weak regularisation, each from the solution before: a warm start.
        solver = torch.optim.LBFGS(
            parameters, max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
        )

        def loss(solver: torch.optim.LBFGS = solver, strength: float = strength) -> Any:
            solver.zero_grad()
            penalty = weight.square().sum()
            if text is not None:
                penalty = penalty + bias.square().sum() + (gain - 1).square().sum()
            value = torch_cross_entropy(rows @ weight.T + bias + cosines * gain, labels)
            value = value + penalty / (2 * strength * len(labels))
            value.backward()
            return value

        solver.step(loss)
        heads.append(head(float(strength)))
        if len(heads) > PATIENCE and min(heads[-PATIENCE:], key=_by_val_loss).val_loss > heads[-PATIENCE - 1].val_loss:
            # Over-fitting from here on, and the weakest regularisation is the slowest to solve.
            break
    return min(heads, key=_by_val_loss)


def fit_gda(train: Examples, val: Examples, text: Array | None, scale: float) -> LinearHead:
    """Gaussian discriminant analysis with a shrunk shared covariance, added to zero-shot with a chosen weight.

    Wang et al. 2024 (arXiv 2402.04087), eqs. 4-6: W_c = P mu_c, b_c = log(1 / C) - mu_c P mu_c / 2, with the empirical
    Bayes ridge precision P = E ((n - 1) S + tr(S) I)^-1 (Kubokawa and Srivastava 2008).
    """
    features, labels = train[0].astype(np.float64), train[1]
    num_classes = len(text) if text is not None else int(labels.max()) + 1
    means = np.stack([features[labels == label].mean(0) for label in range(num_classes)])
    centred = features - means[labels]
    # Rows are centred by class already; np.cov centres once more about the overall mean, which is zero.
    scatter = centred.T @ centred
    covariance = scatter / max(len(features) - 1, 1)
    width = features.shape[1]
    precision = width * np.linalg.pinv(scatter + np.trace(covariance) * np.eye(width), hermitian=True)
    weight = means @ precision
    bias = -np.log(num_classes) - 0.5 * (weight * means).sum(1)
    anchor = np.zeros_like(weight) if text is None else scale * text.astype(np.float64)
    return min(
        (_scored(val, weight=anchor + alpha * weight, bias=alpha * bias, chosen=alpha) for alpha in GDA_WEIGHTS),
        key=_by_val_loss,
    )


def fit_tip(train: Examples, val: Examples, text: Array, scale: float) -> CacheHead:
    """Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), not fine-tuned; alpha and beta from a grid.

    Its keys are averages over ten augmented views; ours are the one evaluation view that the box answered.
    """
    fixed: dict[str, Any] = {
        "text": text.astype(np.float32),
        "keys": train[0].astype(np.float32),
        "labels": train[1].astype(np.int64),
        "scale": float(scale),
    }
    settings = [(0.0, TIP_SHARPNESS[0])] + [(a, b) for b in TIP_SHARPNESS for a in TIP_WEIGHTS if a > 0]
    tried = (CacheHead(**fixed, alpha=a, beta=b, val_loss=np.nan) for a, b in settings)
    best = min(tried, key=lambda head: _loss(head.scores(val[0]), val[1]))
    return CacheHead(**fixed, alpha=best.alpha, beta=best.beta, val_loss=_loss(best.scores(val[0]), val[1]))


def fit_clip_adapter(
    train: Examples, val: Examples, text: Array, scale: float, seed: int, *, steps: int = 200, rate: float = 1e-2
) -> AdapterHead:
    """CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544) on image features: bottleneck E // 4, no biases.

    Full-batch Adam with a cosine rate; ratio and stopping step are chosen on validation among `ADAPTER_RATIOS` x
    `ADAPTER_LOOKS`, zero-shot (ratio 0) included. The paper trains by SGD on augmented mini-batches, with ratio 0.2.
    """
    import torch
    from torch.nn.functional import cross_entropy as torch_cross_entropy
    from torch.nn.functional import normalize

    width = train[0].shape[1]
    hidden = max(width // 4, 1)
    noise = rng(seed, 0, Purpose.HEAD)
    start = [noise.uniform(-1, 1, size) / np.sqrt(size[0]) for size in ((width, hidden), (hidden, width))]
    rows, labels = torch.from_numpy(train[0].astype(np.float32)), torch.from_numpy(train[1].astype(np.int64))
    words = torch.from_numpy(text.astype(np.float32))
    fixed: dict[str, Any] = {"text": text.astype(np.float32), "scale": float(scale)}

    def look(layers: Sequence[Array], ratio: float) -> AdapterHead:
        layers = [layer.astype(np.float32, copy=True) for layer in layers]
        tried = AdapterHead(**fixed, down=layers[0], up=layers[1], ratio=ratio, val_loss=np.nan)
        value = _loss(tried.scores(val[0]), val[1])
        return AdapterHead(**fixed, down=layers[0], up=layers[1], ratio=ratio, val_loss=value)

    best = look(start, 0.0)
    for ratio in ADAPTER_RATIOS:
        layers = [torch.from_numpy(layer.astype(np.float32)).requires_grad_() for layer in start]
        adam = torch.optim.Adam(layers, lr=rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for step in range(1, steps + 1):
            adapted = ((rows @ layers[0]).relu() @ layers[1]).relu()
            logits = scale * normalize(ratio * adapted + (1 - ratio) * rows, dim=-1) @ words.T
            adam.zero_grad()
            torch_cross_entropy(logits, labels).backward()
            adam.step()
            cosine.step()
            if step % max(steps // ADAPTER_LOOKS, 1) == 0:
                best = min(
                    best, look([layer.detach().numpy() for layer in layers], ratio), key=lambda one: one.val_loss
                )
    return best


def fit_score_linear(train: Examples, val: Examples) -> LinearHead:
    """The zero-shot-anchored linear head on scores: log-probabilities are the features, the anchor is themselves."""
    rows = [(log_probabilities(scores).astype(np.float32), labels) for scores, labels in (train, val)]
    # As they are given to `scores`: `inputs` makes log-probabilities, which do not depend on a row's constant.
    identity = np.eye(train[0].shape[1], dtype=np.float32)
    return fit_linear(*rows[0], *rows[1], identity, scale=1.0)


def fit_auto(train: Examples, val: Examples, text: Array, scale: float, seed: int) -> Head:
    """The best on validation of every head on features and of none: the classes' own text features, as they are."""
    none = _scored(val, weight=scale * text, bias=np.zeros(len(text)), chosen=0.0)
    names = [name for name in HEADS if name != "auto" and not on_scores(name)]
    return min([none, *(HEADS[name](train, val, text, scale, seed) for name in names)], key=_by_val_loss)


HEADS: dict[str, Callable[[Examples, Examples, Any, float, int], Head]] = {
    "linear": lambda train, val, text, scale, seed: fit_linear(*train, *val),
    "linear-anchored": lambda train, val, text, scale, seed: fit_linear(*train, *val, text, scale=scale),
    "gda": lambda train, val, text, scale, seed: fit_gda(train, val, text, scale),
    "tip": lambda train, val, text, scale, seed: fit_tip(train, val, text, scale),
    "clip-adapter": fit_clip_adapter,
    "auto": fit_auto,
    "score-linear": lambda train, val, text, scale, seed: fit_score_linear(train, val),
    "score-adapter": lambda train, val, text, scale, seed: fit_score_adapter(train, val, seed),
}
"""`head:NAME` -> its fit. A name that begins with `score-` is of a head on scores `(n, C)`, the others on features."""


def on_scores(name: str) -> bool:
    """Whether a head reads scores `(n, C)`, which more boxes give, and not image features `(n, E)`."""
    return name.startswith("score-")


def inputs(name: str, outputs: Outputs) -> Array | None:
    """What a head reads of a box's answer for one candidate: image features `(B, E)`, or log-probabilities `(B, C)`.

    None where the box does not give it.
    """
    if not on_scores(name):
        return None if outputs.image is None else outputs.image[0]
    if outputs.scores is None and outputs.image is None:
        return None
    return log_probabilities(outputs.logits()[0]).astype(np.float32)


def _scored(val: Examples, *, weight: Array, bias: Array, chosen: float) -> LinearHead:
    weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    return LinearHead(weight=weight, bias=bias, chosen=chosen, val_loss=_loss(val[0] @ weight.T + bias, val[1]))


def _by_val_loss(head: Head) -> float:
    return head.val_loss


def _loss(scores: Array, labels: Array) -> float:
    return float(cross_entropy(Outputs(scores=scores[None]), labels)[0])


def _state(head: Any) -> dict[str, Array]:
    return {field.name: np.asarray(getattr(head, field.name)) for field in fields(head)}


def _from_state(kind: Any, state: Mapping[str, Array]) -> Any:
    return kind(**{key: float(value) if np.ndim(value) == 0 else np.asarray(value) for key, value in state.items()})
