"""Recall of many parts of one set of features, for the price of little more than one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluations.metrics.manifolds import BLOCK, check_features, keep_nearest, squared_distances

_KEPT = 24  # of half of the features, 4 are among the nearest 24 in all but one case of 30,000
_MOST = 50_000_000  # pairs within reach of each other


def recall_figure(
    reference_MD: np.ndarray, features_ND: np.ndarray, neighbours: int = 3, block: int = BLOCK
) -> Callable[[np.ndarray], np.ndarray] | None:
    """The share of reference images that lie in the manifold of those features that count.

    Returned is a function of counts 0 or 1, int [R, N], to float64 [R]: recall as ``precision_recall`` defines it.
    At least ``neighbours`` + 1 must count. Distances are computed once; kept are each feature's nearest others, and
    the pairs with a reference image that can matter. None where these are too many to keep, as of many equal features.
    """
    for array in (reference_MD, features_ND):
        check_features(array)
    nearest, indices = _nearest_of_all(features_ND, min(_KEPT, len(features_ND)), block)
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


def _nearest_of_all(features_ND: np.ndarray, kept: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances of each feature to its ``kept`` nearest, itself included, ascending, and which they are."""
    count = len(features_ND)
    nearest = np.full((count, kept), np.inf, dtype=np.float32)
    indices = np.zeros((count, kept), dtype=np.int64)
    for begin in range(0, count, block):
        rows = slice(begin, min(begin + block, count))
        for start in range(begin, count, block):
            columns = slice(start, min(start + block, count))
            found = squared_distances(features_ND[rows], features_ND[columns])
            keep_nearest(nearest[rows], indices[rows], found, start)
            if start > begin:
                keep_nearest(nearest[columns], indices[columns], np.ascontiguousarray(found.T), begin)
    order = np.argsort(nearest, axis=1, kind="stable")
    return np.take_along_axis(nearest, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _pairs_within(
    reference_MD: np.ndarray, features_ND: np.ndarray, reach_N: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Indices of reference images and features at most ``reach_N`` apart, and their squared distances."""
    found, total = [], 0
    for begin in range(0, len(reference_MD), block):
        for start in range(0, len(features_ND), block):
            columns = slice(start, start + block)
            distances = squared_distances(reference_MD[begin : begin + block], features_ND[columns])
            i, j = np.nonzero(distances <= reach_N[columns])
            total += len(i)
            if total > _MOST:
                return None
            found.append((i + begin, j + start, distances[i, j]))
    i, j, distances = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, distances
