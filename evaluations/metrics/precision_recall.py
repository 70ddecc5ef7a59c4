"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991) with k nearest neighbours."""

from __future__ import annotations

import numpy as np

from evaluations.metrics.manifolds import (
    BLOCK,
    Distances,
    check_features,
    covered,
    manifold_radii,
    squared_distances,
)
from evaluations.metrics.two_precisions import inside_each_other

__all__ = ["covered", "inside_manifolds", "manifold_radii", "precision_recall", "squared_distances"]

NEIGHBOURS = 3


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
