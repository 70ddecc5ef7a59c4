"""The kernel distance (KID, Binkowski et al. 2018, arXiv:1801.01401): unbiased at any number of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import ndtri

from evaluations.metrics.metric import Metric, Score, Sets

SUBSETS = 100
SUBSET_SIZE = 1000
_BLOCK = 2000


def kernel_distance(
    reference_ND: np.ndarray,
    samples_MD: np.ndarray,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Return mean and standard deviation over random subsets of the squared maximum mean discrepancy.

    The kernel is (uv / D + 1)^3. Subsets of ``subset_size`` images are drawn without replacement. Without it they are
    of 1000; of sets that are not larger than that the mean is over subsets as large as the smaller set, and the
    deviation over subsets of half its size, as larger ones share most of their images. The unbiased estimate may be
    below zero.

    Raises ``ValueError`` if a set has less than 2 features or ``subset_size``, or the widths differ.
    """
    smaller = min(len(reference_ND), len(samples_MD))
    if smaller < 2 or reference_ND.shape[1] != samples_MD.shape[1]:
        raise ValueError(
            f"expected features [N, D] of one width, N >= 2, found {reference_ND.shape} and {samples_MD.shape}"
        )
    if subset_size is not None and not 2 <= subset_size <= smaller:
        raise ValueError(f"expected subsets of 2 to {smaller} images, found {subset_size}")

    def of_subsets(size: int) -> list[float]:
        random = np.random.default_rng(seed)
        draws = (
            [x[random.choice(len(x), size, replace=False)] for x in (reference_ND, samples_MD)] for _ in range(subsets)
        )
        return [squared_discrepancy(*chosen) for chosen in draws]

    size, spread = (subset_size,) * 2 if subset_size else (min(SUBSET_SIZE, smaller), deviation_size(smaller))
    found = of_subsets(size)
    return float(np.mean(found)), float(np.std(found if spread == size else of_subsets(spread)))


def deviation_size(smaller: int) -> int:
    """Return the size of the subsets whose deviation is given where the smaller set has ``smaller`` images."""
    return SUBSET_SIZE if smaller > SUBSET_SIZE else max(2, smaller // 2)


def squared_discrepancy(first_ND: np.ndarray, second_MD: np.ndarray) -> float:
    """Return the unbiased estimate for two sets of features, in float64, without pairs of an image with itself."""
    first, second = first_ND.astype(np.float64), second_MD.astype(np.float64)
    within = [_kernel(x, x) for x in (first, second)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return float(means[0] + means[1] - 2 * _kernel(first, second).mean())


def kernel_figure(features_ND: np.ndarray, reference_MD: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return ``squared_discrepancy`` to the reference as a function of how often each of the features counts.

    It takes counts, int [R, N], to float64 [R]. Each call computes all kernels anew, in blocks, so that many counts
    at once are cheaper.
    """
    ones = np.ones((1, len(reference_MD)))
    within_reference = _unbiased_mean(ones, reference_MD)[0]
    across_N = _across(features_ND, reference_MD)

    def figure(counts_RN: np.ndarray) -> np.ndarray:
        counts = counts_RN.astype(np.float64)
        across = counts @ across_N / counts.sum(axis=1)
        return _unbiased_mean(counts, features_ND) + within_reference - 2 * across

    return figure


def kernel_interval(
    features_ND: np.ndarray, reference_MD: np.ndarray, level: float = 0.95
) -> tuple[float, float]:
    """Return an interval that holds the expected ``squared_discrepancy`` to this reference with probability ``level``.

    The discrepancy is a U-statistic, the mean of h(i, j) over pairs of different samples, of which the variance has an
    unbiased estimate: with U and h less U, that of means over pairs that share no sample is subtracted from U^2. Images
    drawn with replacement would make pairs with their copies. The estimate may fall below what h alone contributes,
    2 var(h) / (N (N - 1)), which is then taken. Raises ``ValueError`` for fewer than 4 samples.
    """
    count = len(features_ND)
    if count < 4:
        raise ValueError(f"expected at least 4 samples, found {count}")
    within_reference = _unbiased_mean(np.ones((1, len(reference_MD))), reference_MD)[0]
    across_N = _across(features_ND, reference_MD)
    sums_N, squares = np.zeros(count), 0.0
    for rows in _blocks(features_ND):
        for columns in _blocks(features_ND):
            pairs = _kernel(features_ND[rows], features_ND[columns]) + within_reference
            pairs -= across_N[rows, None] + across_N[columns]
            if rows == columns:
                np.fill_diagonal(pairs, 0)
            sums_N[rows] += pairs.sum(axis=1)
            squares += (pairs**2).sum()
    value = sums_N.sum() / (count * (count - 1))
    of_pairs = squares - count * (count - 1) * value**2
    of_samples = ((sums_N - (count - 1) * value) ** 2).sum()
    unbiased = (4 * of_samples - 2 * of_pairs) / (count * (count - 1) * (count - 2) * (count - 3))
    reach = ndtri((1 + level) / 2) * np.sqrt(max(unbiased, 2 * of_pairs / (count * (count - 1)) ** 2, 0.0))
    return float(value - reach), float(value + reach)


def _across(features_ND: np.ndarray, reference_MD: np.ndarray) -> np.ndarray:
    """Return the mean kernel of each image with the reference, float64 [N]."""
    across_N = np.zeros(len(features_ND))
    for rows in _blocks(features_ND):
        for columns in _blocks(reference_MD):
            across_N[rows] += _kernel(features_ND[rows], reference_MD[columns]).sum(axis=1)
    return across_N / len(reference_MD)


def _unbiased_mean(counts_RN: np.ndarray, features_ND: np.ndarray) -> np.ndarray:
    """Return the mean kernel of all pairs of different draws, float64 [R]; an image drawn twice pairs with its copy."""
    found = np.zeros(len(counts_RN))
    for rows in _blocks(features_ND):
        for columns in _blocks(features_ND):
            if columns.start < rows.start:
                continue  # the mirror image of a block already seen
            kernel = _kernel(features_ND[rows], features_ND[columns])
            pairs = ((counts_RN[:, rows] @ kernel) * counts_RN[:, columns]).sum(axis=1)
            found += pairs if rows == columns else 2 * pairs
            if rows == columns:
                found -= counts_RN[:, rows] @ np.diagonal(kernel)
    total = counts_RN.sum(axis=1)
    return found / (total * (total - 1))


def _blocks(features_ND: np.ndarray) -> list[slice]:
    return [slice(begin, begin + _BLOCK) for begin in range(0, len(features_ND), _BLOCK)]


def _kernel(first_ND: np.ndarray, second_MD: np.ndarray) -> np.ndarray:
    """Return the kernel of all pairs, float64 [N, M]."""
    first_ND, second_MD = (x.astype(np.float64, copy=False) for x in (first_ND, second_MD))
    return (first_ND @ second_MD.T / first_ND.shape[1] + 1) ** 3


def _compute(sets: Sets) -> Score | None:
    if sets.pools is None:
        return None
    value, deviation = kernel_distance(*sets.pools, subset_size=sets.kid_subset_size, seed=sets.seed)
    size, warnings = sets.kid_subset_size or deviation_size(min(map(len, sets.pools))), []
    if sets.kid_subset_size is None and size < SUBSET_SIZE:
        warnings = [
            f"KID: its deviation is over subsets of {size} images, half the smaller set, not {SUBSET_SIZE}, as there "
            "are too few; --kid_subset_size chooses another size"
        ]
    return Score(value, adds={"kid_deviation": deviation, "kid_subset_size": size}, warnings=warnings)


def _figure(sets: Sets, activations: Any) -> Callable[[np.ndarray], np.ndarray]:
    return kernel_figure(activations.pool, sets.pools[0])


def _interval(sets: Sets, *_: int) -> tuple[float, float]:
    reference, samples = sets.pools
    return kernel_interval(samples, reference)


KID = Metric(
    "kid", "KID", _compute, lower_is_better=True, extra=True, figure=_figure, interval=_interval,
    adds={"kid_deviation": "KID deviation", "kid_subset_size": None},
)  # fmt: skip
