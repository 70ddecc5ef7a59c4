"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991) with k nearest neighbours."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from evaluations.metrics import half_precision
from evaluations.metrics.manifolds import (
    BLOCK,
    Distances,
    check_features,
    covered,
    manifold_radii,
    squared_distances,
)
from evaluations.metrics.metric import Metric, Score, Sets
from evaluations.metrics.recall_of_parts import recall_figure
from evaluations.metrics.resampling import Figure, mean_figure
from evaluations.metrics.two_precisions import inside_each_other

__all__ = ["covered", "inside_manifolds", "manifold_radii", "precision_recall", "squared_distances"]

NEIGHBOURS = 3

log = logging.getLogger(__name__)


def precision_recall(
    reference_ND: np.ndarray,
    samples_MD: np.ndarray,
    neighbours: int = NEIGHBOURS,
    block: int = BLOCK,
    distances: Distances | None = None,
) -> tuple[float, float]:
    """Precision (share of samples in the reference manifold) and recall (the reverse), both in 0..1.

    Raises ``ValueError`` if either set has not more than ``neighbours`` features, the widths differ, or a
    feature is not finite.
    """
    samples_inside, reference_inside = inside_manifolds(reference_ND, samples_MD, neighbours, block, distances)
    return float(samples_inside.mean()), float(reference_inside.mean())


def inside_manifolds(
    reference_ND: np.ndarray,
    samples_MD: np.ndarray,
    neighbours: int = NEIGHBOURS,
    block: int = BLOCK,
    distances: Distances | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples lie in the reference manifold, bool [M], and which reference images in the samples', bool [N].

    Their means are precision and recall; raises as ``precision_recall`` does. With ``distances`` those decide, in
    place of float64's.
    """
    for features_ND in (reference_ND, samples_MD):
        check_features(features_ND)
        if len(features_ND) <= neighbours:
            raise ValueError(f"expected at least {neighbours + 1} images, found {len(features_ND)}")
    if distances is None:
        return inside_each_other(reference_ND, samples_MD, neighbours, block)
    radii = [manifold_radii(x, (neighbours,), block, block, distances) for x in (reference_ND, samples_MD)]
    reference_inside, samples_inside = covered(
        reference_ND, radii[0], samples_MD, radii[1], block, block, distances
    )
    return samples_inside[:, 0], reference_inside[:, 0]


def _inside(sets: Sets) -> tuple[np.ndarray, np.ndarray] | None:
    if sets.pools is None:
        return None
    if not sets.exact_upstream:
        return inside_manifolds(*sets.pools)
    return inside_manifolds(*sets.pools, block=half_precision.BLOCK, distances=half_precision.upstream_distances)


def _precision(sets: Sets) -> Score | None:
    inside = sets.once(_inside)
    return inside and Score.mean(inside[0])


def _recall(sets: Sets) -> Score | None:
    inside = sets.once(_inside)
    return inside and Score.mean(inside[1])


def _precision_figure(sets: Sets, activations: Any) -> Figure:
    reference = sets.pools[0]
    nothing = np.empty((len(activations.pool), 0), dtype=np.float32)  # no manifold of theirs
    _, inside = covered(reference, manifold_radii(reference, (NEIGHBOURS,)), activations.pool, nothing)
    return mean_figure(inside[:, 0])


def _recall_figure(sets: Sets, activations: Any) -> Figure | None:
    if (figure := recall_figure(sets.pools[0], activations.pool, NEIGHBOURS)) is None:
        log.warning("warning: no paired test of recall: too many images have the same features")
    return figure


PRECISION = Metric(
    "precision", "Precision", _precision, "precision", upstream=True, per_class=True, figure=_precision_figure
)
RECALL = Metric("recall", "Recall", _recall, "recall", upstream=True, per_class=True, figure=_recall_figure)
