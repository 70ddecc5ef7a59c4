"""Mean and covariance of activations, which the Fréchet distance compares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas

_ROWS_AT_ONCE = 2048
_BLOCK = 256


@dataclass(frozen=True)
class Gaussian:
    """Mean ``mu`` [D] and covariance ``sigma`` [D, D] of one kind of activations.

    ``factor`` [D, R] with factor @ factor.T = sigma where one narrower than D is known.
    """

    mu: np.ndarray
    sigma: np.ndarray
    factor: np.ndarray | None = None


def fit_gaussian(features_ND: np.ndarray) -> Gaussian:
    """Return mean and unbiased covariance of features [N, D], N >= 2.

    The mean keeps the dtype of the features (float32 from every extractor), as published figures do. The
    covariance is float64 throughout, with divisor N - 1; it is summed over blocks of rows, so that a large N
    never needs a float64 copy of all features. With N < D the centred features are kept as its factor.

    Raises ``ValueError`` if the features are not [N, D] with N >= 2 or not all finite.
    """
    features_ND = np.asarray(features_ND)
    if features_ND.ndim != 2 or len(features_ND) < 2:
        raise ValueError(f"expected features [N, D] with N >= 2, found shape {features_ND.shape}")
    if not np.isfinite(features_ND).all():
        raise ValueError("expected finite features, found nan or infinity")
    count, dims = features_ND.shape
    centre_D = features_ND.mean(axis=0, dtype=np.float64)
    mu_D = features_ND.mean(axis=0)
    if count < dims:
        factor_DN = (features_ND.astype(np.float64) - centre_D).T / np.sqrt(count - 1)
        return Gaussian(mu_D, factor_DN @ factor_DN.T, factor_DN)
    scatter_DD = np.zeros((dims, dims), order="F")
    centred = np.empty((min(count, _ROWS_AT_ONCE), dims))
    for begin in range(0, count, _ROWS_AT_ONCE):
        rows = features_ND[begin : begin + _ROWS_AT_ONCE]
        block = np.subtract(rows, centre_D, out=centred[: len(rows)])
        scatter_DD = blas.dsyrk(1.0, block.T, beta=1.0, c=scatter_DD, lower=1, overwrite_c=1)
    scatter_DD /= count - 1
    _mirror(scatter_DD)
    return Gaussian(mu_D, scatter_DD)


def _mirror(lower_DD: np.ndarray) -> None:
    """Copy the lower half of a matrix to its upper one, block by block, which keeps to the cache."""
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(lower_DD), _BLOCK)]
    for i, rows in enumerate(blocks):
        for columns in blocks[:i]:
            lower_DD[columns, rows] = lower_DD[rows, columns].T
        square = lower_DD[rows, rows]
        square[:] = np.tril(square) + np.tril(square, -1).T
