"""The inception score of class probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import rel_entr

from evaluations.metrics.metric import Metric, Sets
from evaluations.metrics.significance import Figure, row_by_row, rows_of

SPLIT_SIZE = 5000


def inception_score(probabilities_NK: np.ndarray, split_size: int = SPLIT_SIZE) -> float:
    """Return the mean over splits of exp(mean_n KL(p_n || mean of the split)); between 1 and K.

    ``probabilities_NK`` are rows that sum to one, taken in file order in splits of ``split_size`` (the last
    one may be shorter and counts as much as the others). Computed in float64.

    A probability that underflowed to zero contributes the limit of p log p, which is 0. (Upstream's formula
    is nan there; wherever that is finite the two agree.)

    Raises ``ValueError`` if the probabilities are not [N, K] with N >= 1, negative, or not finite.
    """
    probabilities_NK = np.asarray(probabilities_NK)
    if probabilities_NK.ndim != 2 or len(probabilities_NK) < 1:
        raise ValueError(f"expected probabilities [N, K], found shape {probabilities_NK.shape}")
    if not (np.isfinite(probabilities_NK).all() and (probabilities_NK >= 0).all()):
        raise ValueError("expected probabilities, found negative numbers, nan or infinity")
    scores = []
    for begin in range(0, len(probabilities_NK), split_size):
        split = probabilities_NK[begin : begin + split_size].astype(np.float64)
        divergence_N = rel_entr(split, split.mean(axis=0)).sum(axis=1)
        scores.append(np.exp(divergence_N.mean()))
    return float(np.mean(scores))


def _compute(sets: Sets) -> float | None:
    probabilities = sets.samples.features.probabilities
    return inception_score(probabilities) if probabilities.shape[1] else None


def _figure(_: Sets, activations: Any) -> Figure:
    return row_by_row(lambda counts: inception_score(activations.probabilities[rows_of(counts)]))


INCEPTION_SCORE = Metric(
    "inception_score", "Inception Score", _compute, "inception score", "IS", upstream=True, figure=_figure
)
