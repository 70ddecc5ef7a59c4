"""Better, worse, or noise? By the spread of the seeds, or by a paired test at every seed.

The demo, `ed-dpm report` and the ablation on CIFAR-10 decide here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from evaluations.metrics.registry import METRICS
from experiments.results import RunResult, digits

BETTER, WORSE, SAME = "better", "worse", "the same within the noise"
DEVIATIONS = 2  # of a difference's noise: up to so many count as the same
LARGEST_P = 0.05  # of a paired test that shows a difference
MANY = 5  # seeds, of which the tests count together


@dataclass(frozen=True)
class Difference:
    """Mean of a metric less that of another result.

    :param noise: its standard deviation; None where no run has two seeds.
    :param places: digits behind the point that are shown.
    """

    metric: str
    value: float
    noise: float | None
    places: int

    @property
    def verdict(self) -> str | None:
        """BETTER, WORSE or SAME; None without noise to compare with."""
        if self.noise is None:
            return None
        if abs(self.value) <= DEVIATIONS * self.noise:
            return SAME
        return BETTER if (self.value < 0) == METRICS[self.metric].lower_is_better else WORSE

    def __str__(self) -> str:
        text = f"{METRICS[self.metric].column} {self.value:+.{self.places}f}"
        if self.noise is None:
            return f"{text}, noise unknown with one seed a run"
        return f"{text}, noise {self.noise:.{self.places}f}: {self.verdict}"


def compare(a: RunResult, b: RunResult, pool: Iterable[RunResult], metric: str = "fid") -> Difference:
    """`a` against `b`, with the noise that the seeds of all runs in `pool` show.

    A few seeds of two runs say little about noise, those of all runs say more. The noise of a distance grows with
    the distance, so there the relative spread is what is pooled.
    """
    total, freedom = 0.0, 0
    for run in pool:
        if size := _size(run, metric):
            total += sum((value - run.mean(metric)) ** 2 for value in run.values(metric)) / size**2
            freedom += len(run.values(metric)) - 1
    noise = None
    if freedom:
        noise = math.sqrt(total / freedom * sum(_size(run, metric) ** 2 / len(run.evaluations) for run in (a, b)))
    return Difference(metric, a.mean(metric) - b.mean(metric), noise, digits(metric, b.mean(metric)))


def _size(run: RunResult, metric: str) -> float:
    """The size that a run's noise is in proportion to; 0 for one that lacks the metric."""
    return (run.mean(metric) or 0.0) if METRICS[metric].lower_is_better else float(bool(run.values(metric)))


def by_paired_tests(differences: Sequence[float], p: Sequence[float]) -> str:
    """The verdict on a distance's differences at several seeds: one direction, and small p, or SAME.

    Each p is at most LARGEST_P; of MANY seeds or more, their combination by Fisher's method is.
    """
    one_direction = len({difference > 0 for difference in differences}) == 1
    together = stats.combine_pvalues(p).pvalue if len(p) >= MANY else max(p)
    if not one_direction or together > LARGEST_P:
        return SAME
    return BETTER if differences[0] < 0 else WORSE


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent values, one a seed; infinite for a single one."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)
