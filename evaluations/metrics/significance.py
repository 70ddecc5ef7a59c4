"""Uncertainty of a figure, from images redrawn (bootstrap), split into halves, or swapped between two sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

_ROUNDING = 1e-7  # of a Fréchet distance between few images; equal sets must not differ by it
_AT_ONCE = 64  # rounds whose counts are handed over together

Figure = Callable[[np.ndarray], np.ndarray]  # of how often each image counts, int64 [R, N], R times: float64 [R]


def bootstrap_interval(
    figure: Figure, count: int, rounds: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return an interval that holds a figure of ``count`` images with probability ``level``.

    Images are drawn with replacement ``rounds`` times, by ``seed`` alone. The spread of the redrawn figures around
    *their* mean is laid around the figure itself: a Fréchet distance rises when images repeat, and its raw quantiles
    would leave the figure out.
    """
    random = np.random.default_rng(seed)
    drawn = np.empty(rounds)
    for some in _rounds(rounds):
        drawn[some] = figure(
            np.stack([np.bincount(random.integers(count, size=count), minlength=count) for _ in some])
        )
    value = figure(np.ones((1, count), dtype=np.int64))[0]
    low, high = np.quantile(drawn - drawn.mean(), [(1 - level) / 2, (1 + level) / 2])
    return float(value + low), float(value + high)


def split_interval(figure: Figure, count: int, rounds: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Return an interval that holds the expectation of a figure, a distance, with probability ``level``.

    The images are split into random halves ``rounds`` times. Two halves are independent sets, so half the mean square
    of their difference estimates the variance of a figure of count / 2 images without bias, and half of that the
    variance for all images. (Images drawn with replacement repeat, which gives a Fréchet distance additional spread.)
    The interval is laid on a logarithmic scale, as a distance is not negative and its spread grows with it; its upper
    end, beyond e times the figure, grows in proportion to the spread. Raises ``ValueError`` for fewer than 4 images.
    """
    if count < 4:
        raise ValueError(f"expected at least 4 images, found {count}")
    random = np.random.default_rng(seed)
    half = count // 2
    squares = np.empty(rounds)
    for some in _rounds(rounds):
        counts_RN = np.zeros((2 * len(some), count), dtype=np.int64)
        for i in range(len(some)):
            shuffled = random.permutation(count)
            counts_RN[i, shuffled[:half]] = counts_RN[len(some) + i, shuffled[half : 2 * half]] = 1
        first, second = np.split(figure(counts_RN), 2)
        squares[some] = (first - second) ** 2
    value = float(figure(np.ones((1, count), dtype=np.int64))[0])
    reach = float(ndtri((1 + level) / 2) * np.sqrt(squares.mean() / 2 * half / count))
    growth = reach / value if value > 0 else np.inf
    return float(value * np.exp(-growth)), float(value * np.exp(growth) if growth < 1 else np.e * reach)


def paired_difference(figure: Figure, count: int, rounds: int, seed: int) -> dict[str, float]:
    """Test whether two sets of ``count`` images differ whose i-th images share their noise.

    ``figure`` takes counts of the images of the first set, then the second, [2 * count]. If the sets are equal
    in distribution, swapping any pairs changes nothing (Fisher's test): ``p`` is the share of ``rounds`` random
    swaps, and the unswapped sets, whose ``difference`` (first minus second) is at least as large in size.
    """
    random = np.random.default_rng(seed)
    first, second = (float(values[0]) for values in _of_both(figure, np.zeros((1, count), dtype=bool)))
    difference, tolerance = first - second, _ROUNDING * (abs(first) + abs(second))
    beyond = 1
    for some in _rounds(rounds):
        ones, others = _of_both(figure, np.stack([random.random(count) < 0.5 for _ in some]))
        beyond += int((abs(ones - others) >= abs(difference) - tolerance).sum())
    return {"difference": difference, "p": beyond / (rounds + 1)}


def _of_both(figure: Figure, swapped_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the figures [R] of the first and of the second set after swaps of pairs."""
    second = np.concatenate([swapped_RN, ~swapped_RN], axis=1).astype(np.int64)
    first, second = np.split(figure(np.concatenate([1 - second, second])), 2)
    return first, second


def _rounds(count: int) -> list[range]:
    return [range(begin, min(begin + _AT_ONCE, count)) for begin in range(0, count, _AT_ONCE)]


def row_by_row(figure: Callable[[np.ndarray], float]) -> Figure:
    """Return a figure from a function of one row of counts, int64 [N]."""
    return lambda counts_RN: np.array([figure(counts_N) for counts_N in counts_RN])


def mean_figure(values_N: np.ndarray) -> Figure:
    """Return the mean of one value an image, as a figure."""
    return lambda counts_RN: counts_RN @ values_N / counts_RN.sum(axis=1)


def rows_of(counts: np.ndarray) -> np.ndarray:
    """Return the indices of the images in order, each as often as it counts."""
    return np.repeat(np.arange(len(counts)), counts)
