"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991) with k nearest neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from evaluations.metrics.exact_neighbours import inside_each_other
from evaluations.metrics.manifolds import (
    BLOCK,
    UPSTREAM_BLOCK,
    Distances,
    check_features,
    covered,
    distance_blocks,
    find_nearest,
    manifold_radii,
    squared_distances,
    upstream_distances,
)
from evaluations.metrics.metric import Metric, Score, Sets
from evaluations.metrics.significance import Figure, mean_figure

__all__ = ["covered", "inside_manifolds", "manifold_radii", "precision_recall", "squared_distances"]

NEIGHBOURS = 3
_KEPT = 24  # of half of the features, 4 are among the nearest 24 in all but one case of 30,000
_MOST = 50_000_000  # pairs within reach of each other

log = logging.getLogger(__name__)


def precision_recall(
    reference_ND: np.ndarray,
    samples_MD: np.ndarray,
    neighbours: int = NEIGHBOURS,
    block: int = BLOCK,
    distances: Distances | None = None,
) -> tuple[float, float]:
    """Return precision (share of samples in the reference manifold) and recall (the reverse), both in 0..1.

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
    """Return which samples lie in the reference manifold, bool [M], and which references in the samples', bool [N].

    Their means are precision and recall; raises as ``precision_recall`` does. ``distances`` replaces those of float64.
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


def recall_figure(
    reference_MD: np.ndarray, features_ND: np.ndarray, neighbours: int = 3, block: int = BLOCK
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return recall as a function of which features count, for the price of little more than one recall.

    It takes counts 0 or 1, int [R, N], to float64 [R], as ``precision_recall`` defines recall. At least
    ``neighbours`` + 1 must count. Distances are computed once; kept are each feature's nearest others, and the pairs
    with a reference image that can matter. None where these are too many to keep, as with many equal features.
    """
    for array in (reference_MD, features_ND):
        check_features(array)
    measure = lambda rows, columns: squared_distances(features_ND[rows], features_ND[columns])  # noqa: E731
    nearest, indices = find_nearest(measure, len(features_ND), min(_KEPT, len(features_ND)), block, block)
    order = np.argsort(nearest, axis=1, kind="stable")
    nearest, indices = (np.take_along_axis(array, order, axis=1) for array in (nearest, indices))
    pairs = _pairs_within(reference_MD, features_ND, nearest[:, -1], block)
    if pairs is None:
        return None
    i, j, apart = pairs

    def figure(counts_RN: np.ndarray) -> np.ndarray:
        return np.array([recall(counts_N > 0) for counts_N in counts_RN])

    def recall(counted_N: np.ndarray) -> float:
        # The radius is the distance to the (neighbours + 1)-th that counts, the feature itself included.
        before = (np.cumsum(counted_N[indices], axis=1) <= neighbours).sum(axis=1)
        known = counted_N & (before < indices.shape[1])
        radii = np.where(known, nearest[np.arange(len(nearest)), np.minimum(before, indices.shape[1] - 1)], -1)
        inside = np.zeros(len(reference_MD), dtype=bool)
        inside[i[apart <= radii[j]]] = True
        for k in np.flatnonzero(counted_N & ~known):
            one = features_ND[k : k + 1]
            reach = np.partition(squared_distances(one, features_ND[counted_N])[0], neighbours)[neighbours]
            inside |= squared_distances(reference_MD, one)[:, 0] <= reach
        return float(inside.mean())

    return figure


def _pairs_within(
    reference_MD: np.ndarray, features_ND: np.ndarray, reach_N: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return indices of reference images and features at most ``reach_N`` apart, and their squared distances."""
    found, total = [], 0
    for rows, columns, distances in distance_blocks(reference_MD, features_ND, block, block):
        i, j = np.nonzero(distances <= reach_N[columns])
        total += len(i)
        if total > _MOST:
            return None
        found.append((i + rows.start, j + columns.start, distances[i, j]))
    i, j, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, distances


def _inside(sets: Sets) -> tuple[np.ndarray, np.ndarray] | None:
    if sets.pools is None:
        return None
    if not sets.exact_upstream:
        return inside_manifolds(*sets.pools)
    return inside_manifolds(*sets.pools, block=UPSTREAM_BLOCK, distances=upstream_distances)


def _share(place: int, sets: Sets) -> Score | None:
    """Return the share inside of the samples (place 0) or of the reference (1)."""
    inside = sets.once(_inside)
    return inside and Score.mean(inside[place])


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
    "precision", "Precision", partial(_share, 0), "precision", upstream=True, per_class=True, figure=_precision_figure
)
RECALL = Metric("recall", "Recall", partial(_share, 1), "recall", upstream=True, per_class=True, figure=_recall_figure)
