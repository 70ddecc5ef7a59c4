"""How sure a figure is: the same figure of images drawn again (bootstrap), of halves, or swapped between two sets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

_ROUNDING = 1e-7  # of a Fréchet distance between few images; equal sets must not differ by it

_AT_ONCE = 64  # rounds whose counts are handed over together

Figure = Callable[[np.ndarray], np.ndarray]  # of how often each image counts, int64 [R, N], R times: float64 [R]


def bootstrap_intervals(
    figures: dict[str, Figure], count: int, rounds: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """For each figure of ``count`` images an interval that holds it with probability ``level``.

    Images are drawn with replacement ``rounds`` times; every figure sees the same draws. The spread of the
    redrawn figures around *their* mean is laid around the figure itself: a Fréchet distance rises when images
    repeat, and its raw quantiles would leave the figure out.
    """
    random = np.random.default_rng(seed)
    draws = {name: np.empty(rounds) for name in figures}
    for some in _rounds(rounds):
        counts_RN = np.stack([np.bincount(random.integers(count, size=count), minlength=count) for _ in some])
        for name, figure in figures.items():
            draws[name][some] = figure(counts_RN)
    ones = np.ones((1, count), dtype=np.int64)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        name: tuple(float(figures[name](ones)[0] + q) for q in np.quantile(drawn - drawn.mean(), tails))
        for name, drawn in draws.items()
    }


def split_intervals(
    figures: dict[str, Figure], count: int, rounds: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return for each figure, a distance, an interval that holds its expectation with probability ``level``.

    The images are split into random halves ``rounds`` times. Two halves are independent sets, so half the mean square
    of their difference estimates the variance of a figure of count / 2 images without bias, and with half of that the
    one of all. (Images drawn with replacement repeat, which adds to a Fréchet distance a spread of its own.) The
    interval is laid on a logarithmic scale, as a distance is not negative and its spread grows with it; its upper
    end, beyond e times the figure, grows in proportion to the spread. Raises ``ValueError`` for fewer than 4 images.
    """
    if count < 4:
        raise ValueError(f"expected at least 4 images, found {count}")
    random = np.random.default_rng(seed)
    half = count // 2
    squares = {name: np.empty(rounds) for name in figures}
    for some in _rounds(rounds):
        counts_RN = np.zeros((2 * len(some), count), dtype=np.int64)
        for i in range(len(some)):
            shuffled = random.permutation(count)
            counts_RN[i, shuffled[:half]] = counts_RN[len(some) + i, shuffled[half : 2 * half]] = 1
        for name, figure in figures.items():
            first, second = np.split(figure(counts_RN), 2)
            squares[name][some] = (first - second) ** 2
    ones = np.ones((1, count), dtype=np.int64)
    found = {}
    for name, figure in figures.items():
        value = float(figure(ones)[0])
        reach = float(ndtri((1 + level) / 2) * np.sqrt(squares[name].mean() / 2 * half / count))
        growth = reach / value if value > 0 else np.inf
        found[name] = (value * np.exp(-growth), value * np.exp(growth) if growth < 1 else np.e * reach)
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def paired_differences(
    figures: dict[str, Figure], count: int, rounds: int, seed: int
) -> dict[str, dict[str, float]]:
    """Whether two sets of ``count`` images differ whose i-th images share their noise.

    ``figures`` take counts of the images of the first set, then the second, [2 * count]. If the sets are equal
    in distribution, swapping any pairs changes nothing (Fisher's test): ``p`` is the share of ``rounds`` random
    swaps, and the set as it is, whose ``difference`` (first minus second) is at least as large in size.
    """
    random = np.random.default_rng(seed)
    unswapped = np.zeros((1, count), dtype=bool)
    found, tolerance = {}, {}
    for name, figure in figures.items():
        first, second = (float(values[0]) for values in _of_both(figure, unswapped))
        found[name], tolerance[name] = first - second, _ROUNDING * (abs(first) + abs(second))
    beyond = dict.fromkeys(figures, 1)
    for some in _rounds(rounds):
        swapped = np.stack([random.random(count) < 0.5 for _ in some])
        for name, figure in figures.items():
            first, second = _of_both(figure, swapped)
            beyond[name] += int((abs(first - second) >= abs(found[name]) - tolerance[name]).sum())
    return {name: {"difference": found[name], "p": beyond[name] / (rounds + 1)} for name in figures}


def _of_both(figure: Figure, swapped_RN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    second = np.concatenate([swapped_RN, ~swapped_RN], axis=1).astype(np.int64)
    first, second = np.split(figure(np.concatenate([1 - second, second])), 2)
    return first, second


def _rounds(count: int) -> list[range]:
    return [range(begin, min(begin + _AT_ONCE, count)) for begin in range(0, count, _AT_ONCE)]


def row_by_row(figure: Callable[[np.ndarray], float]) -> Figure:
    """A figure from a function of one row of counts, int64 [N]."""
    return lambda counts_RN: np.array([figure(counts_N) for counts_N in counts_RN])


def mean_figure(values_N: np.ndarray) -> Figure:
    """The mean of one value an image."""
    return lambda counts_RN: counts_RN @ values_N / counts_RN.sum(axis=1)


def rows_of(counts: np.ndarray) -> np.ndarray:
    """Indices of the images in order, each as often as it counts."""
    return np.repeat(np.arange(len(counts)), counts)
