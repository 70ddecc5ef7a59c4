"""The Fréchet distance between two Gaussians (FID when the features come from Inception)."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from evaluations.metrics.statistics import Gaussian

# A covariance stored in float32 has eigenvalues this far below zero, relative to the largest; not a defect.
_NEGATIVE_TOLERANCE = 1e-5


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared 2-Wasserstein distance |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

    With S1 = A A' and S2 = B B', the eigenvalues of (S1 S2)^(1/2) are the singular values of A'B, so its
    trace is their sum. This form (float64) needs no matrix square root of a nearly singular, unsymmetric
    product: it stays real and is accurate at any rank, e.g. with fewer images than dimensions. Known factors
    are used as they are.

    Raises ``ValueError`` if the shapes disagree, a number is not finite, or a covariance has a clearly
    negative eigenvalue.
    """
    mu1, mu2 = (np.atleast_1d(np.asarray(g.mu)) for g in (first, second))
    sigma1, sigma2 = (np.atleast_2d(np.asarray(g.sigma, dtype=np.float64)) for g in (first, second))
    if mu1.shape != mu2.shape or mu1.ndim != 1:
        raise ValueError(f"expected two mean vectors of one length, found shapes {mu1.shape} and {mu2.shape}")
    if not sigma1.shape == sigma2.shape == (len(mu1), len(mu1)):
        raise ValueError(
            f"expected two covariances of shape {(len(mu1), len(mu1))}, "
            f"found {sigma1.shape} and {sigma2.shape}"
        )
    if not all(np.isfinite(array).all() for array in (mu1, mu2, sigma1, sigma2)):
        raise ValueError("expected finite means and covariances, found nan or infinity")

    difference = mu1.astype(np.float64) - mu2.astype(np.float64)
    factor1 = _symmetric_factor(sigma1) if first.factor is None else first.factor
    factor2 = _symmetric_factor(sigma2) if second.factor is None else second.factor
    cross = factor1.T @ factor2
    trace_of_root = linalg.svdvals(cross).sum() if cross.size else 0.0
    return float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2.0 * trace_of_root)


def _symmetric_factor(sigma_DD: np.ndarray) -> np.ndarray:
    """A [D, rank] with A A' = sigma.

    Eigenvalues within the rounding error of the decomposition are dropped: their square roots would be noise
    of 1e-8 relative size in every null direction, which adds up over thousands of dimensions.
    """
    values, vectors = linalg.eigh((sigma_DD + sigma_DD.T) / 2, driver="evd")
    largest = np.abs(values).max(initial=0.0)
    if values.min(initial=0.0) < -_NEGATIVE_TOLERANCE * largest:
        raise ValueError(f"expected a covariance, found a matrix with the eigenvalue {values.min():.3g}")
    kept = values > largest * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
