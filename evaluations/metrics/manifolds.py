"""Manifolds as unions of balls around features (Kynkäänniemi et al. 2019, arXiv:1904.06991).

A set's manifold is the union of balls around its features, each reaching to the k-th nearest other feature.
All distances here are *squared* Euclidean ones. They are computed in float64 and compared after rounding to
float32, so a result does not depend on the block sizes, which only bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

BLOCK = 2000  # not a power of two: rows that lie so far apart share cache lines
_LARGEST_NORM = 1e37  # distances are at most four times as large

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features [R, D], [C, D] -> squared, float32 [R, C]


def squared_distances(rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray:
    """Squared distances [R, C], float32, from |u|^2 - 2uv + |v|^2 in float64, never negative.

    Values within the rounding error of that formula are 0, so that equal features are at distance 0 whatever
    order the products were summed in.
    """
    rows = rows_RD.astype(np.float64)
    columns = columns_CD.astype(np.float64)
    norms_RC = np.einsum("rd,rd->r", rows, rows)[:, None] + np.einsum("cd,cd->c", columns, columns)
    distances_RC = norms_RC - 2.0 * (rows @ columns.T)
    distances_RC[distances_RC <= norms_RC * rows.shape[1] * np.finfo(np.float64).eps] = 0.0
    return distances_RC.astype(np.float32)


def manifold_radii(
    features_ND: np.ndarray,
    neighbours: Sequence[int] = (3,),
    row_block: int = BLOCK,
    column_block: int = BLOCK,
    distances: Distances | None = None,
) -> np.ndarray:
    """Squared radius of each feature's ball, float32 [N, len(neighbours)].

    For k in ``neighbours`` it is the (k+1)-th smallest squared distance from the feature to all N features,
    itself included. ``distances`` is ``squared_distances`` unless another function is given.

    Raises ``ValueError`` if there are not more than max(neighbours) features.
    """
    check_features(features_ND)
    wanted = max(neighbours) + 1
    if len(features_ND) < wanted:
        raise ValueError(f"expected at least {wanted} images, found {len(features_ND)}")
    mirrored = distances is None and row_block == column_block
    nearest = np.full((len(features_ND), wanted), np.inf, dtype=np.float32)
    whose = np.zeros(nearest.shape, dtype=np.int64)
    for rows in _blocks(len(features_ND), row_block):
        for columns in _blocks(len(features_ND), column_block):
            if mirrored and columns.start < rows.start:
                continue  # the mirror image of a block already seen
            found = (distances or squared_distances)(features_ND[rows], features_ND[columns])
            keep_nearest(nearest[rows], whose[rows], found, columns.start)
            if mirrored and columns.start > rows.start:
                keep_nearest(nearest[columns], whose[columns], np.ascontiguousarray(found.T), rows.start)
    return np.sort(nearest, axis=1)[:, list(neighbours)]


def keep_nearest(nearest_RK: np.ndarray, indices_RK: np.ndarray, found_RC: np.ndarray, start: int) -> None:
    """Replace, in place, each row's K smallest distances and whose they are by the K smallest of old and new."""
    kept = nearest_RK.shape[1]
    # Most new distances are beyond all that is kept: ordering is for those rows that gain something.
    (rows,) = np.nonzero(found_RC.min(axis=1) < nearest_RK.max(axis=1))
    found = found_RC[rows]
    order = np.argpartition(found, min(kept, found.shape[1]) - 1, axis=1)[:, :kept]
    values = np.concatenate([nearest_RK[rows], np.take_along_axis(found, order, axis=1)], axis=1)
    whose = np.concatenate([indices_RK[rows], order + start], axis=1)
    order = np.argpartition(values, kept - 1, axis=1)[:, :kept]
    nearest_RK[rows] = np.take_along_axis(values, order, axis=1)
    indices_RK[rows] = np.take_along_axis(whose, order, axis=1)


def covered(
    first_ND: np.ndarray,
    first_radii_NK: np.ndarray,
    second_MD: np.ndarray,
    second_radii_ML: np.ndarray,
    row_block: int = BLOCK,
    column_block: int = BLOCK,
    distances: Distances | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which features of each set lie in the other's manifold: bool [N, L] (first) and [M, K] (second).

    A feature lies in a ball if its squared distance is less than *or equal to* the squared radius.
    """
    check_features(first_ND)
    check_features(second_MD)
    first_inside = np.zeros((len(first_ND), second_radii_ML.shape[1]), dtype=bool)
    second_inside = np.zeros((len(second_MD), first_radii_NK.shape[1]), dtype=bool)
    for rows in _blocks(len(first_ND), row_block):
        for columns in _blocks(len(second_MD), column_block):
            found = (distances or squared_distances)(first_ND[rows], second_MD[columns])
            for l_ in range(first_inside.shape[1]):
                first_inside[rows, l_] |= (found <= second_radii_ML[None, columns, l_]).any(axis=1)
            for k in range(second_inside.shape[1]):
                second_inside[columns, k] |= (found <= first_radii_NK[rows, k, None]).any(axis=0)
    return first_inside, second_inside


def check_features(features_ND: np.ndarray) -> None:
    """``ValueError`` unless features are [N, D], finite, and small enough for squared distances in float32."""
    if features_ND.ndim != 2 or not np.isfinite(features_ND).all():
        raise ValueError(f"expected finite features [N, D], found shape {features_ND.shape} or nan, infinity")
    largest = max(float(features_ND.max(initial=0)), -float(features_ND.min(initial=0)))
    if largest**2 * features_ND.shape[1] > _LARGEST_NORM:
        raise ValueError(f"expected features whose squared norm is below {_LARGEST_NORM}, found one of {largest:.3g}")


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))
