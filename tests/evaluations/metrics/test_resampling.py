"""Intervals, paired tests and the further metrics, against definitions and known distributions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from evaluations.metrics import kernel_distance as kernels
from evaluations.metrics.density_coverage import density_coverage
from evaluations.metrics.frechet import frechet_distance, frechet_figure
from evaluations.metrics.kernel_distance import (
    kernel_distance,
    kernel_figure,
    kernel_interval,
    squared_discrepancy,
)
from evaluations.metrics.precision_recall import precision_recall, recall_figure
from evaluations.metrics.significance import (
    bootstrap_interval,
    mean_figure,
    paired_difference,
    rows_of,
    split_interval,
)
from evaluations.metrics.statistics import fit_gaussian


@pytest.mark.parametrize(("n_reference", "n_samples"), [(90, 70), (10, 70), (90, 8), (10, 8)])
def test_frechet_figure_is_the_distance_of_the_rows(n_reference, n_samples):
    random = np.random.default_rng(0)
    reference = fit_gaussian(random.normal(size=(n_reference, 20)))
    samples = random.normal(1, 2, size=(n_samples, 20)).astype(np.float32)
    figure = frechet_figure(samples, reference)
    for counts in (np.ones(n_samples, int), random.integers(0, 3, n_samples)):
        expected = frechet_distance(fit_gaussian(samples[rows_of(counts)].astype(np.float64)), reference)
        assert figure(counts[None])[0] == pytest.approx(expected, rel=1e-6)


def test_intervals_of_a_mean_are_the_textbooks():
    values = np.random.default_rng(1).normal(5, 3, size=2000)
    low, high = bootstrap_interval(mean_figure(values), 2000, rounds=2000, seed=0)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_intervals_are_seeded_and_hold_the_figure():
    random = np.random.default_rng(2)
    reference = fit_gaussian(random.normal(size=(100, 6)))
    figure = frechet_figure(random.normal(size=(50, 6)), reference)
    low, high = bootstrap_interval(figure, 50, rounds=50, seed=3)
    assert low < figure(np.ones((1, 50), int))[0] < high
    assert bootstrap_interval(figure, 50, rounds=50, seed=3) == (low, high)
    assert bootstrap_interval(figure, 50, rounds=50, seed=4) != (low, high)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["normal", "laplace"])  # light and heavy tails
def test_intervals_of_a_distance_cover_what_they_should(kind, shift):
    """95 % of them hold the mean distance of 50 images; the bootstrap's are too wide where it is small."""
    random, dims, count = np.random.default_rng(0), 8, 50

    def draw(n: int) -> np.ndarray:
        return getattr(random, kind)(size=(n, dims))

    reference = fit_gaussian(draw(20_000))
    distances = [frechet_distance(fit_gaussian(draw(count) + shift), reference) for _ in range(300)]
    mean, width = np.mean(distances), 2 * 1.96 * np.std(distances)
    figures = [frechet_figure(draw(count) + shift, reference) for _ in range(60)]
    found = np.array([split_interval(figure, count, 40, seed) for seed, figure in enumerate(figures)])
    assert ((found[:, 0] <= mean) & (mean <= found[:, 1])).mean() >= 0.92
    split, bootstrap = (
        np.median([high - low for low, high in intervals]) / width
        for intervals in (found, [bootstrap_interval(f, count, 40, i) for i, f in enumerate(figures[:20])])
    )
    assert 0.9 < split < 1.6 and (found > 0).all()
    assert shift or split < 0.95 * bootstrap


def test_intervals_of_no_distance():
    """Of a set and itself the figure is 0, or rounding."""
    features = np.random.default_rng(1).normal(size=(40, 5))
    figure = frechet_figure(features, fit_gaussian(features))
    low, high = split_interval(figure, 40, rounds=20, seed=0)
    assert 0 <= low < 1e-6 and 0.01 < high < 10
    halved = split_interval(lambda counts: np.zeros(len(counts)), 4, rounds=2, seed=0)
    assert halved == (0, 0)
    with pytest.raises(ValueError, match="at least 4"):
        split_interval(figure, 3, rounds=2, seed=0)


@pytest.mark.parametrize("count", [40, 7])
def test_a_set_is_at_no_distance_from_itself(count):
    features = np.random.default_rng(2).normal(size=(count, 12)).astype(np.float32)
    assert frechet_distance(fit_gaussian(features), fit_gaussian(features.copy())) == 0
    assert frechet_distance(fit_gaussian(features), fit_gaussian(features[::-1])) >= 0
    assert frechet_figure(features, fit_gaussian(features))(np.ones((1, count), int))[0] >= 0


def test_paired_test_sees_what_shared_noise_shows():
    """A shift far smaller than the noise, in one set only; and no shift."""
    random = np.random.default_rng(3)
    noise = random.normal(size=300)
    for shift, significant in ((0.01, True), (0.0, False)):
        other = noise + shift + random.normal(size=300) * 1e-2
        figure = mean_figure(np.concatenate([noise, other]))
        result = paired_difference(figure, 300, rounds=199, seed=0)
        assert (result["p"] <= 0.01) == significant
        assert result["difference"] == pytest.approx((noise - other).mean())


def test_paired_test_of_equal_sets():
    """Also with fewer images than dimensions, where rounding shows in the distance."""
    for dims in (5, 300):
        features = np.random.default_rng(4).normal(size=(40, dims)).astype(np.float32)
        figure = frechet_figure(np.concatenate([features, features]), fit_gaussian(features + 1))
        result = paired_difference(figure, 40, rounds=9, seed=0)
        assert abs(result["difference"]) < 1e-6 and result["p"] == 1


def test_kernel_distance_is_the_definition():
    random = np.random.default_rng(5)
    first, second = random.normal(size=(7, 3)), random.normal(1, size=(6, 3))

    def kernel(u, v):
        return (u @ v / 3 + 1) ** 3

    expected = np.mean([kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j])
    expected += np.mean([kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j])
    expected -= 2 * np.mean([kernel(a, b) for a in first for b in second])
    assert squared_discrepancy(first, second) == pytest.approx(expected)
    assert kernel_distance(first, second, subset_size=6, subsets=3)[1] > 0


def test_kernel_distance_is_unbiased():
    random = np.random.default_rng(6)
    first, second = random.normal(size=(2, 2000, 4))
    mean, deviation = kernel_distance(first, second, subsets=50, subset_size=100)
    assert abs(mean) < deviation
    assert kernel_distance(first, second + 1, subsets=50, subset_size=100)[0] > 10 * deviation
    assert kernel_distance(first, second, 5, 50, seed=1) == kernel_distance(first, second, 5, 50, seed=1)
    with pytest.raises(ValueError, match="one width"):
        kernel_distance(first, second[:, :2])


def test_the_kernel_distance_of_few_images_has_a_deviation():
    """Not that of a sum in another order; the mean is over all images as before."""
    random = np.random.default_rng(10)
    first, second = random.normal(size=(60, 4)), random.normal(0.2, size=(50, 4))
    mean, deviation = kernel_distance(first[:50], second, seed=1)
    assert mean == pytest.approx(squared_discrepancy(first[:50], second))
    assert deviation == kernel_distance(first[:50], second, subset_size=25, seed=1)[1] > 1e-3
    assert kernel_distance(first, second, seed=1)[0] == kernel_distance(first, second, subset_size=50, seed=1)[0]
    for size in (1, 51):
        with pytest.raises(ValueError, match=f"subsets of 2 to 50 images, found {size}"):
            kernel_distance(first, second, subset_size=size)
    many = random.normal(size=(1001, 2))
    assert kernel_distance(many, many, subsets=2) == kernel_distance(many, many, subsets=2, subset_size=1000)


@pytest.mark.parametrize("block", [7, 1000])
def test_density_and_coverage_are_the_definition(block):
    random = np.random.default_rng(7)
    reference, samples = random.normal(size=(40, 3)), random.normal(0.5, size=(30, 3))
    apart = np.linalg.norm(reference[:, None] - reference, axis=-1)
    inside = np.linalg.norm(reference[:, None] - samples, axis=-1) < np.sort(apart, axis=1)[:, 5:6]
    per_sample, covered = density_coverage(reference, samples, block=block)
    np.testing.assert_allclose(per_sample, inside.sum(axis=0) / 5)
    np.testing.assert_array_equal(covered, inside.any(axis=1))


def test_kernel_figure_is_the_discrepancy_of_the_rows(monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK", 13)
    random = np.random.default_rng(8)
    reference, samples = random.normal(size=(30, 4)), random.normal(0.3, size=(40, 4)).astype(np.float32)
    counts = random.integers(0, 3, (5, 40))
    expected = [squared_discrepancy(samples[rows_of(row)], reference) for row in counts]
    np.testing.assert_allclose(kernel_figure(samples, reference)(counts), expected, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["normal", "laplace"])  # light and heavy tails
def test_intervals_of_the_kernel_distance_cover_what_they_should(kind, shift):
    """95 % of them hold the mean figure of 50 images; the bootstrap's are twice as wide where there is no shift."""
    random, dims, count = np.random.default_rng(0), 8, 50
    reference = getattr(random, kind)(size=(100, dims))

    def draw() -> np.ndarray:
        return getattr(random, kind)(size=(count, dims)) + shift

    figures = [squared_discrepancy(draw(), reference) for _ in range(400)]
    mean, width = np.mean(figures), 2 * 1.96 * np.std(figures)
    samples = [draw() for _ in range(100)]
    found = np.array([kernel_interval(one, reference) for one in samples])
    assert ((found[:, 0] <= mean) & (mean <= found[:, 1])).mean() >= 0.86
    redrawn = [bootstrap_interval(kernel_figure(one, reference), count, 40, 0) for one in samples[:20]]
    ours, theirs = (np.median([high - low for low, high in some]) / width for some in (found, redrawn))
    assert 0.7 < ours < 1.4
    assert shift or ours < 0.8 * theirs


def test_the_variance_of_the_kernel_distance_is_unbiased(monkeypatch):
    """By its definition, in blocks: the mean over pairs of pairs of different images."""
    monkeypatch.setattr(kernels, "_BLOCK", 3)
    random = np.random.default_rng(8)
    reference, samples = random.normal(size=(30, 4)), random.normal(1, size=(7, 4))
    low, high = kernel_interval(samples, reference)
    value = squared_discrepancy(samples, reference)
    across = ((samples @ reference.T / 4 + 1) ** 3).mean(axis=1)
    within = squared_discrepancy(reference, reference) + 2 * ((reference @ reference.T / 4 + 1) ** 3).mean()
    pairs = (samples @ samples.T / 4 + 1) ** 3 - across - across[:, None] + within / 2
    apart = [pairs[i, j] * pairs[k, m] for i, j, k, m in permutations(range(7), 4)]
    reach = 1.96 * (value**2 - np.mean(apart)) ** 0.5
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((value, reach), rel=1e-4)
    with pytest.raises(ValueError, match="at least 4"):
        kernel_interval(samples[:3], reference)


@pytest.mark.parametrize("kept", [4, 6, 24])
@pytest.mark.parametrize("kind", ["spread out", "copies", "pairs"])
def test_recall_figure_is_the_recall_of_the_part(monkeypatch, kept, kind):
    """Also where the nearest that were kept do not hold enough that count."""
    monkeypatch.setattr("evaluations.metrics.precision_recall._KEPT", kept)
    random = np.random.default_rng(9)
    reference, samples = random.normal(size=(60, 3)), random.normal(0.8, size=(80, 3)).astype(np.float32)
    if kind == "copies":
        samples = samples.repeat(5, axis=0)[:80]
    if kind == "pairs":
        samples[40:] = samples[:40] + 1e-3
    counts = np.zeros((6, 80), dtype=np.int64)
    for row in counts:
        row[random.choice(80, 40, replace=False)] = 1
    expected = [precision_recall(reference, samples[row > 0])[1] for row in counts]
    assert recall_figure(reference, samples, block=17)(counts).tolist() == expected
    assert min(expected) > 0 and max(expected) < 1


def test_recall_figure_gives_up_rather_than_fill_the_memory(monkeypatch):
    monkeypatch.setattr("evaluations.metrics.precision_recall._MOST", 99)
    assert recall_figure(np.ones((10, 2)), np.ones((10, 2))) is None
