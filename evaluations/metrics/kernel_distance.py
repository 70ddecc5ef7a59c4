"""The kernel distance (KID, Binkowski et al. 2018, arXiv:1801.01401): unbiased at any number of images."""

from __future__ import annotations

import numpy as np

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(
    reference_ND: np.ndarray,
    samples_MD: np.ndarray,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of the squared maximum mean discrepancy.

    The kernel is (uv / D + 1)^3. Subsets are drawn without replacement, of ``subset_size`` images or as many
    as both sets have. The unbiased estimate may be below zero.

    Raises ``ValueError`` if a set has less than 2 features or the widths differ.
    """
    size = min(subset_size, len(reference_ND), len(samples_MD))
    if size < 2 or reference_ND.shape[1] != samples_MD.shape[1]:
        raise ValueError(
            f"expected features [N, D] of one width, N >= 2, found {reference_ND.shape} and {samples_MD.shape}"
        )
    random = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        chosen = [x[random.choice(len(x), size, replace=False)] for x in (reference_ND, samples_MD)]
        found.append(squared_discrepancy(*chosen))
    return float(np.mean(found)), float(np.std(found))


def squared_discrepancy(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """The unbiased estimate of two sets of features, in float64: pairs of one image with itself are left out."""
    first, second = first_ND.astype(np.float64), second_MD.astype(np.float64)
    within = [_kernel(x, x) for x in (first, second)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return float(means[0] + means[1] - 2 * _kernel(first, second).mean())


def _kernel(first_ND: np.ndarray, second_MD: np.ndarray) -> np.ndarray:
    return (first_ND @ second_MD.T / first_ND.shape[1] + 1) ** 3
