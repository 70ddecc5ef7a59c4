"""The Fréchet distance between two Gaussians (FID when the features come from Inception)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from scipy import linalg

from evaluations.metrics.metric import Metric, Sets
from evaluations.metrics.significance import Figure, row_by_row, split_interval
from evaluations.metrics.statistics import Gaussian
from guided_diffusion.errors import InputError

# A covariance stored in float32 has eigenvalues this far below zero, relative to the largest; not a defect.
_NEGATIVE_TOLERANCE = 1e-5
# Largest error of the quick method, relative to the distance.
_ACCURACY = 1e-9


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Return the squared 2-Wasserstein distance |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), in float64.

    No root of the nearly singular, unsymmetric product is taken. With S1 = A A' its trace is the sum of the
    roots of the eigenvalues of the symmetric A' S2 A, where A is S1's Cholesky factor, or the features
    themselves if they are fewer than the dimensions. Small eigenvalues lose their digits that way; where this
    could be felt, the sum is taken over the singular values of A'B with S2 = B B' instead, which keeps them. Equal
    Gaussians are at distance 0, and rounding never brings others below it.

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

    if np.array_equal(mu1, mu2) and np.array_equal(sigma1, sigma2):
        return 0.0
    difference = mu1.astype(np.float64) - mu2.astype(np.float64)
    apart = difference @ difference + np.trace(sigma1) + np.trace(sigma2)
    if first.factor is None or second.factor is None:
        trace, error = _quick_trace(sigma1, sigma2, first.factor, second.factor)
        if error <= _ACCURACY * abs(apart - 2.0 * trace):
            return max(0.0, float(apart - 2.0 * trace))
    cross = factor_of(first).T @ factor_of(second)
    return max(0.0, float(apart - 2.0 * (linalg.svdvals(cross).sum() if cross.size else 0.0)))


def factor_of(gaussian: Gaussian) -> np.ndarray:
    """Return A [D, R] with A A' = sigma, R <= D: the known one, or from a decomposition that works at any rank.

    Eigenvalues within the rounding error of the decomposition are dropped: their square roots would be noise
    of 1e-8 relative size in every null direction, which adds up over thousands of dimensions.
    """
    if gaussian.factor is not None:
        return gaussian.factor
    sigma_DD = np.atleast_2d(np.asarray(gaussian.sigma, dtype=np.float64))
    values, vectors = linalg.eigh((sigma_DD + sigma_DD.T) / 2, driver="evd")
    largest = np.abs(values).max(initial=0.0)
    if values.min(initial=0.0) < -_NEGATIVE_TOLERANCE * largest:
        raise ValueError(f"expected a covariance, found a matrix with the eigenvalue {values.min():.3g}")
    kept = values > largest * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _quick_trace(
    sigma1: np.ndarray, sigma2: np.ndarray, factor1: np.ndarray | None, factor2: np.ndarray | None
) -> tuple[float, float]:
    """Return tr (S1 S2)^(1/2) from one symmetric eigenvalue problem, and a bound on twice its rounding error.

    The error is infinite where neither covariance has a known factor or a Cholesky factor.
    """
    factor, other = (factor1, sigma2) if factor1 is not None else (factor2, sigma1)
    if factor is None:
        factor, other = _cholesky(sigma1), sigma2
    if factor is None:
        factor, other = _cholesky(sigma2), sigma1
    if factor is None:
        return 0.0, np.inf
    values = linalg.eigvalsh(factor.T @ (other + other.T) @ factor / 2, driver="ev")
    largest = np.abs(values).max(initial=0.0)
    if values.min(initial=0.0) < -_NEGATIVE_TOLERANCE * largest:
        raise ValueError(f"expected a covariance, found a matrix with an eigenvalue below {values.min():.3g}")
    roots = np.sqrt(np.maximum(values, 0.0))
    rounding = 8 * np.finfo(np.float64).eps * largest
    # sqrt(v + rounding) - sqrt(v) without cancellation
    error = 2.0 * (rounding / (np.sqrt(roots**2 + rounding) + roots)).sum() if rounding else 0.0
    return roots.sum(), error


def _cholesky(sigma_DD: np.ndarray) -> np.ndarray | None:
    """Return A [D, D] with A A' = sigma, or None if sigma is not positive definite."""
    try:
        return linalg.cholesky(sigma_DD, lower=True)
    except linalg.LinAlgError:
        return None


def frechet_figure(features_ND: np.ndarray, reference: Gaussian) -> Figure:
    """Return the Fréchet distance to a fixed reference as a function of how often each image counts.

    What does not depend on the counts is computed once: with the reference covariance A A', the features times A.
    A call then needs one product and the eigenvalues of one symmetric matrix. Holds N x D float64 numbers twice.
    """
    centre = features_ND.mean(axis=0, dtype=np.float64)
    centred_ND = features_ND - centre
    factor_DR = factor_of(reference)
    projected_NR = centred_ND @ factor_DR
    squares_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
    offset_D = centre - reference.mu
    reference_trace = float(np.trace(reference.sigma))

    def figure(counts: np.ndarray) -> float:
        total = counts.sum()
        mean_D = counts @ centred_ND / total
        trace = (counts @ squares_N - total * (mean_D @ mean_D)) / (total - 1)
        used = np.flatnonzero(counts)
        roots = np.sqrt(counts[used] / (total - 1))[:, None]
        weighted = (projected_NR[used] - mean_D @ factor_DR) * roots
        gram = weighted.T @ weighted if weighted.shape[0] > weighted.shape[1] else weighted @ weighted.T
        values = linalg.eigvalsh(gram, driver="ev", overwrite_a=True, check_finite=False)
        apart = ((offset_D + mean_D) ** 2).sum()
        return max(0.0, float(apart + trace + reference_trace - 2 * np.sqrt(np.maximum(values, 0)).sum()))

    return row_by_row(figure)


def _compute(kind: str, sets: Sets) -> float | None:
    first, second = getattr(sets.samples, kind), getattr(sets.reference, kind)
    if first is None or second is None:
        return None
    try:
        return frechet_distance(first, second)
    except ValueError as error:  # only stored statistics can be unfit
        names = f"{sets.reference.images.name} and {sets.samples.images.name}"
        raise InputError(f"statistics of {names}: {error}") from error


def _figure(kind: str, sets: Sets, activations: Any) -> Figure:
    return frechet_figure(getattr(activations, kind), getattr(sets.reference, kind))


def _interval(kind: str, sets: Sets, rounds: int, seed: int) -> tuple[float, float] | None:
    """Return the interval from random halves; None where the distance is that of stored statistics."""
    if sets.samples.images.stored:
        return None
    figure = _figure(kind, sets, sets.samples.features)
    return split_interval(figure, sets.samples.images.count, rounds, seed)


FID, SFID = (
    Metric(
        name, title, partial(_compute, kind), lower_is_better=True, upstream=True, per_class=kind == "pool",
        figure=partial(_figure, kind), interval=partial(_interval, kind),
    )
    for name, title, kind in (("fid", "FID", "pool"), ("sfid", "sFID", "spatial"))
)  # fmt: skip
