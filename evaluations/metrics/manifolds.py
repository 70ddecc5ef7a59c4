"""Manifolds as unions of balls around features (Kynkäänniemi et al. 2019, arXiv:1904.06991).

A set's manifold is the union of balls around its features, each reaching to the k-th nearest other feature.
All distances here are *squared* Euclidean ones. They are computed in float64 and compared after rounding to
float32, so a result does not depend on the block sizes, which only bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

BLOCK = 2000  # not a power of two, at which rows would share cache lines
UPSTREAM_BLOCK = 10_000  # whether one is in half precision there depends on all of it
_STRIP = 1024
_LARGEST_NORM = 1e37  # distances are at most four times as large

Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features [R, D], [C, D] -> squared, float32 [R, C]


def squared_distances(rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray:
    """Return squared distances [R, C], float32, from |u|^2 - 2uv + |v|^2 in float64, never negative.

    Values within the rounding error of that formula are 0, so that equal features are at distance 0 whatever
    order the products were summed in.
    """
    rows = rows_RD.astype(np.float64)
    columns = columns_CD.astype(np.float64)
    norms_RC = np.einsum("rd,rd->r", rows, rows)[:, None] + np.einsum("cd,cd->c", columns, columns)
    distances_RC = norms_RC - 2.0 * (rows @ columns.T)
    distances_RC[distances_RC <= norms_RC * rows.shape[1] * np.finfo(np.float64).eps] = 0.0
    return distances_RC.astype(np.float32)


def upstream_distances(rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray:
    """Return squared distances [R, C], float32, as upstream computes them: |u|^2 - 2uv + |v|^2 in float16, at least 0.

    If a single one overflows, all are computed in float32. Products and sums of squares are summed in float32
    and rounded once, as graphics processors do; each further step rounds to float16. Upstream's printed figures
    need blocks of ``UPSTREAM_BLOCK``.
    """
    half = _distances_in(np.float16, rows_RD, columns_CD)
    return (half if half is not None else _distances_in(np.float32, rows_RD, columns_CD)).astype(np.float32, copy=False)


def _distances_in(kind: type, rows_RD: np.ndarray, columns_CD: np.ndarray) -> np.ndarray | None:
    """Return distances in one precision, or None if float16 overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows, columns = rows_RD.astype(kind), columns_CD.astype(kind)
        row_norms, column_norms = (np.square(x).sum(axis=1, dtype=np.float32).astype(kind) for x in (rows, columns))
        columns = columns.astype(np.float32)
        distances = np.empty((len(rows), len(columns)), dtype=kind)
        for begin in range(0, len(rows), _STRIP):
            strip = slice(begin, begin + _STRIP)
            products = (rows[strip].astype(np.float32) @ columns.T).astype(kind)
            distances[strip] = np.maximum(row_norms[strip, None] - kind(2) * products + column_norms, kind(0))
            if kind is np.float16 and not np.isfinite(distances[strip]).all():
                return None
    return distances


def manifold_radii(
    features_ND: np.ndarray,
    neighbours: Sequence[int] = (3,),
    row_block: int = BLOCK,
    column_block: int = BLOCK,
    distances: Distances | None = None,
) -> np.ndarray:
    """Return the squared radius of each feature's ball, float32 [N, len(neighbours)].

    For k in ``neighbours`` it is the (k+1)-th smallest squared distance from the feature to all N features,
    itself included. ``distances`` is ``squared_distances`` unless another function is given.

    Raises ``ValueError`` if there are not more than max(neighbours) features.
    """
    check_features(features_ND)
    wanted = max(neighbours) + 1
    if len(features_ND) < wanted:
        raise ValueError(f"expected at least {wanted} images, found {len(features_ND)}")
    measure = distances or squared_distances
    mirrored = distances is None and row_block == column_block
    blocks = lambda rows, columns: measure(features_ND[rows], features_ND[columns])  # noqa: E731
    nearest, _ = find_nearest(blocks, len(features_ND), wanted, row_block, column_block, mirrored)
    return np.sort(nearest, axis=1)[:, list(neighbours)]


def find_nearest(
    measure: Callable[[slice, slice], np.ndarray],
    count: int,
    kept: int,
    row_block: int,
    column_block: int,
    mirrored: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each feature's ``kept`` smallest distances, itself included, float32 [N, kept], and whose they are.

    They are in no order. ``measure`` gives the distances of a block, float32 [R, C]; where ``mirrored``, which needs
    equal blocks, that of (columns, rows) is taken for the transpose of (rows, columns).
    """
    nearest = np.full((count, kept), np.inf, dtype=np.float32)
    whose = np.zeros((count, kept), dtype=np.int64)
    for rows in _blocks(count, row_block):
        for columns in _blocks(count, column_block):
            if mirrored and columns.start < rows.start:
                continue
            found = measure(rows, columns)
            _keep_nearest(nearest[rows], whose[rows], found, columns.start)
            if mirrored and columns.start > rows.start:
                _keep_nearest(nearest[columns], whose[columns], np.ascontiguousarray(found.T), rows.start)
    return nearest, whose


def _keep_nearest(nearest_RK: np.ndarray, indices_RK: np.ndarray, found_RC: np.ndarray, start: int) -> None:
    """Replace, in place, each row's K smallest distances and whose they are by the K smallest of old and new."""
    kept = nearest_RK.shape[1]
    # Most new distances are beyond all kept ones: only rows that gain something are ordered.
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
    """Return which features of each set lie in the other's manifold: bool [N, L] (first) and [M, K] (second).

    A feature lies in a ball if its squared distance is less than *or equal to* the squared radius.
    """
    check_features(first_ND)
    check_features(second_MD)
    first_inside = np.zeros((len(first_ND), second_radii_ML.shape[1]), dtype=bool)
    second_inside = np.zeros((len(second_MD), first_radii_NK.shape[1]), dtype=bool)
    for rows, columns, found in distance_blocks(first_ND, second_MD, row_block, column_block, distances):
        for l_ in range(first_inside.shape[1]):
            first_inside[rows, l_] |= (found <= second_radii_ML[None, columns, l_]).any(axis=1)
        for k in range(second_inside.shape[1]):
            second_inside[columns, k] |= (found <= first_radii_NK[rows, k, None]).any(axis=0)
    return first_inside, second_inside


def distance_blocks(
    first_ND: np.ndarray,
    second_MD: np.ndarray,
    row_block: int = BLOCK,
    column_block: int = BLOCK,
    distances: Distances | None = None,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield the squared distances of two sets block by block: rows of the first, columns of the second, [R, C]."""
    for rows in _blocks(len(first_ND), row_block):
        for columns in _blocks(len(second_MD), column_block):
            yield rows, columns, (distances or squared_distances)(first_ND[rows], second_MD[columns])


def check_features(features_ND: np.ndarray) -> None:
    """Raise ``ValueError`` unless features are [N, D], finite, and small enough for squared distances in float32."""
    if features_ND.ndim != 2 or not np.isfinite(features_ND).all():
        raise ValueError(f"expected finite features [N, D], found shape {features_ND.shape} or nan, infinity")
    largest = max(float(features_ND.max(initial=0)), -float(features_ND.min(initial=0)))
    if largest**2 * features_ND.shape[1] > _LARGEST_NORM:
        raise ValueError(f"expected features whose squared norm is below {_LARGEST_NORM}, found one of {largest:.3g}")


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))
