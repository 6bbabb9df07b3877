"""`gda`: one Gaussian per class with a shared covariance, in closed form, added to zero-shot.

Source: Wang et al. 2024, arXiv 2402.04087. Letters: as in `engine.heads`.
"""

from __future__ import annotations

import numpy as np

from engine.heads import Examples, by_val_loss, validated
from engine.heads.linear import LinearHead
from engine.protocols import Array

WEIGHTS = (0.0, *(float(10.0**half) for half in np.arange(-4.0, 2.5, 0.5)))
"""Weights of the Gaussian part that validation chooses from; 0 is zero-shot."""


def fit_gda(train: Examples, val: Examples, text: Array | None, scale: float, seed: int = 1) -> LinearHead:
    """Gaussian discriminant analysis with a shrunk shared covariance, added to zero-shot with a chosen weight.

    Eqs. 4-6: W_c = P mu_c, b_c = log(1 / C) - mu_c P mu_c / 2, with the empirical Bayes ridge precision
    P = E ((n - 1) S + tr(S) I)^-1 (Kubokawa and Srivastava 2008).

    Arguments are those of `engine.heads.fit`; every class must occur in `train`, nothing is added to where `text` is
    None, and `seed` is not used.
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
    tried = (LinearHead.of(anchor + alpha * weight, alpha * bias, chosen=alpha) for alpha in WEIGHTS)
    return min((validated(head, val) for head in tried), key=by_val_loss)
