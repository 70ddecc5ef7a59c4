"""What counts as better: the spread of seeds, and paired tests."""

from __future__ import annotations

import math

import pytest

from experiments.results import Evaluation, RunResult
from experiments.verdict import BETTER, SAME, WORSE, by_paired_tests, compare, t_interval


def run(*values: float, metric: str = "fid") -> RunResult:
    """A run with a value a seed."""
    evaluations = (Evaluation(seed, {metric: value}, "", "") for seed, value in enumerate(values))
    return RunResult(str(values), 100, tuple(evaluations))


def test_the_noise_of_a_distance_grows_with_it():
    small, large = run(0.95, 1.05), run(9.5, 10.5)
    found = compare(large, small, [small, large])
    # Each has a variance of 0.1^2 / 2 of its squared mean; the mean of two seeds has half of that.
    assert found.noise == pytest.approx(math.sqrt(0.1**2 / 2 * (10**2 + 1) / 2))
    assert found.value == pytest.approx(9) and found.verdict == WORSE
    assert compare(small, large, [small, large]).verdict == BETTER
    assert str(found) == "FID +9.00, noise 0.50: worse"


def test_the_noise_of_other_metrics_is_pooled_as_it_is():
    runs = [run(0.5, 0.6, metric="recall"), run(0.1, 0.2, metric="recall"), run(1.0, 2.0)]  # the last one has none
    found = compare(runs[0], runs[1], runs, "recall")
    assert found.noise == pytest.approx(0.1 / 2**0.5)
    assert found.verdict == BETTER and compare(runs[1], runs[0], runs, "recall").verdict == WORSE
    assert str(found) == "recall +0.400, noise 0.071: better"


def test_two_deviations_are_the_same_and_one_seed_says_nothing():
    near, far = run(0.95, 1.05), run(1.0, 1.1)
    assert str(compare(far, near, [near, far])) == "FID +0.05, noise 0.07: the same within the noise"
    alone = compare(run(1.0), run(2.0), [run(1.0), run(2.0)])
    assert (alone.noise, alone.verdict) == (None, None)
    assert str(alone) == "FID -1.00, noise unknown with one seed a run"


def test_paired_tests_have_to_agree():
    assert by_paired_tests([-0.5, -0.1], [0.01, 0.05]) == BETTER
    assert by_paired_tests([0.5, 0.1], [0.01, 0.05]) == WORSE
    assert by_paired_tests([-0.5, 0.1], [0.01, 0.05]) == SAME
    assert by_paired_tests([-0.5, -0.1], [0.01, 0.06]) == SAME
    five = [-0.5, -0.4, -0.3, -0.2, -0.1]
    # Fisher: -2 sum log p is chi-squared with two degrees of freedom a test; 0.16 five times is 5 % together.
    assert by_paired_tests(five, [0.15] * 5) == BETTER and by_paired_tests(five, [0.25] * 5) == SAME
    assert by_paired_tests([*five[:4], 0.1], [0.01] * 5) == SAME


def test_the_interval_over_the_seeds_is_students():
    low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low + high) / 2 == pytest.approx(3) and high - 3 == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert t_interval([1.0]) == (-math.inf, math.inf)
