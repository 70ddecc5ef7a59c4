"""Metrics against closed forms, brute force and themselves with other block sizes."""

from __future__ import annotations

import subprocess
import sys

import mpmath
import numpy as np
import pytest

from evaluations.metrics import precision_recall as pr
from evaluations.metrics import statistics
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.statistics import Gaussian, fit_gaussian
from tests.support.evaluations import precision_recall_by_definition
from tests.support.helpers import ROOT


@pytest.mark.slow
def test_metrics_import_neither_torch_nor_tensorflow():
    code = (
        "import sys\n"
        "from evaluations.metrics import frechet, inception_score, npz, precision_recall, statistics\n"
        "print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_statistics_are_numpys(monkeypatch):
    features = (np.random.RandomState(0).randn(1000, 5) * 3 + 100).astype(np.float32)
    gaussian = fit_gaussian(features)
    assert gaussian.mu.dtype == np.float32
    np.testing.assert_array_equal(gaussian.mu, features.mean(axis=0))
    np.testing.assert_allclose(gaussian.sigma, np.cov(features, rowvar=False), rtol=1e-12, atol=1e-12)
    few = fit_gaussian(features[:4])
    np.testing.assert_allclose(few.sigma, np.cov(features[:4], rowvar=False), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(statistics, "_BLOCK", 2)
    assert (fit_gaussian(features).sigma == fit_gaussian(features).sigma.T).all()
    np.testing.assert_allclose(fit_gaussian(features).sigma, gaussian.sigma, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(3), np.array([[0.0, np.nan], [1, 1]])])
def test_statistics_refuse_unfit_features(features):
    with pytest.raises(ValueError, match="expected"):
        fit_gaussian(features)


def test_frechet_of_one_dimension():
    first, second = (
        Gaussian(np.array([1.0]), np.array([[4.0]])),
        Gaussian(np.array([3.0]), np.array([[25.0]])),
    )
    assert frechet_distance(first, second) == pytest.approx((1 - 3) ** 2 + (2 - 5) ** 2, rel=1e-14)


def test_frechet_of_commuting_covariances():
    random = np.random.RandomState(1)
    rotation = np.linalg.qr(random.randn(30, 30))[0]
    a, b = random.rand(30) * 10, random.rand(30)
    a[:9], b[5:15] = 0, 0  # rank-deficient, with null spaces that overlap in part
    mu = random.randn(30)
    first, second = Gaussian(mu, (rotation * a) @ rotation.T), Gaussian(mu + 0.5, (rotation * b) @ rotation.T)
    exact = 30 * 0.25 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(exact, rel=1e-12)


@pytest.mark.slow
def test_frechet_of_rank_one_covariances():
    u, v = np.random.RandomState(2).randn(2, 500)
    mu = np.zeros(500)
    exact = u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(Gaussian(mu, np.outer(u, u)), Gaussian(mu, np.outer(v, v))) == pytest.approx(
        exact, rel=1e-11
    )


def test_known_factors_change_nothing():
    """Fewer images than dimensions: the features' own factor or the decomposed covariance."""
    random = np.random.RandomState(9)
    first, second = fit_gaussian(random.randn(20, 50)), fit_gaussian(random.rand(200, 50))
    assert first.factor.shape == (50, 20) and second.factor is None
    np.testing.assert_allclose(first.factor @ first.factor.T, first.sigma, atol=1e-14)
    plain = Gaussian(first.mu, first.sigma)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(plain, second), rel=1e-12)


def test_frechet_to_itself_and_between_points_is_zero():
    gaussian = fit_gaussian(np.random.RandomState(3).randn(20, 50))  # fewer images than dimensions
    assert abs(frechet_distance(gaussian, gaussian)) < 1e-11
    point = Gaussian(np.zeros(4), np.zeros((4, 4)))
    assert frechet_distance(point, point) == 0


@pytest.mark.parametrize(
    ("mu", "sigma", "complaint"),
    [
        (np.zeros(3), np.eye(3), "length"),
        (np.zeros(2), np.eye(3), "covariances"),
        (np.zeros(2), np.diag([1.0, -0.1]), "eigenvalue"),
        (np.array([0, np.inf]), np.eye(2), "finite"),
    ],
)
def test_frechet_refuses_unfit_statistics(mu, sigma, complaint):
    with pytest.raises(ValueError, match=complaint):
        frechet_distance(Gaussian(mu, sigma), Gaussian(np.zeros(2), np.eye(2)))


def test_inception_score_of_certain_balanced_predictions_is_the_number_of_classes():
    assert inception_score(np.eye(7, dtype=np.float32).repeat(3, axis=0)) == pytest.approx(7, rel=1e-12)


def test_inception_score_of_equal_predictions_is_one():
    assert inception_score(np.tile([0.5, 0.2, 0.3, 0.0], (9, 1))) == pytest.approx(1, rel=1e-12)


def test_inception_score_is_the_mean_over_splits_in_file_order():
    rows = np.concatenate([np.eye(4), np.eye(4)[[0, 0, 1, 1]], np.eye(4)[[2]]])
    assert inception_score(rows, split_size=4) == pytest.approx((4 + 2 + 1) / 3, rel=1e-12)
    random = np.random.RandomState(4).rand(10200, 3)
    random /= random.sum(axis=1, keepdims=True)
    splits = [inception_score(random[begin : begin + 5000]) for begin in (0, 5000, 10000)]
    assert inception_score(random) == pytest.approx(np.mean(splits), rel=1e-12)


@pytest.mark.parametrize("rows", [np.ones(3), np.array([[0.5, np.nan]]), np.array([[1.5, -0.5]])])
def test_inception_score_refuses_what_is_no_probability(rows):
    with pytest.raises(ValueError, match="expected"):
        inception_score(rows)


def test_radii_on_a_line():
    points = np.array([[0.0], [1], [3], [7], [100]])
    np.testing.assert_array_equal(pr.manifold_radii(points)[:, 0], [49, 36, 16, 49, 99**2])
    np.testing.assert_array_equal(
        pr.manifold_radii(points, (1, 2))[:, :], [[1, 9], [1, 4], [4, 9], [16, 36], [93**2, 97**2]]
    )


def test_precision_and_recall_on_a_line():
    reference = np.array([[0.0], [1], [2], [3]])
    samples = np.array([[2.0], [2.5], [3.0], [3.5], [50.0], [6.0]])
    # The reference reaches 3, 2, 2, 3: the sample at 6 is exactly on the edge, hence inside; only 50 is not.
    # The samples reach 1.5, 1, 1, 1.5, 47, 3.5: the reference at 0 is just out of reach.
    precision, recall = pr.precision_recall(reference, samples)
    assert precision == pytest.approx(5 / 6)
    assert recall == pytest.approx(3 / 4)


def test_disjoint_and_equal_sets():
    points = np.random.RandomState(5).randn(30, 4)
    assert pr.precision_recall(points, points) == (1.0, 1.0)
    assert pr.precision_recall(points, points + 1000) == (0.0, 0.0)


def test_copies_are_at_distance_zero():
    """Four copies of every feature have radius 0 and still cover each other, whatever the rounding."""
    points = np.random.RandomState(6).randn(40, 300).astype(np.float32).repeat(4, axis=0) + 10
    assert (pr.manifold_radii(points, row_block=33, column_block=17) == 0).all()
    assert pr.precision_recall(points, points[::-1], block=29) == (1.0, 1.0)


@pytest.mark.parametrize("offset", [0, 50])
def test_precision_and_recall_are_the_definition(offset):
    random = np.random.RandomState(7)
    reference = (random.randn(150, 40) + offset).astype(np.float32)
    samples = (random.randn(120, 40) * 0.9 + offset + 0.1).astype(np.float32)
    assert pr.precision_recall(reference, samples) == precision_recall_by_definition(reference, samples)


HARD = {
    "outlier": lambda x: np.concatenate([x, 1e4 + x[:1]]),
    "copies": lambda x: x.repeat(5, axis=0),
    "all equal": lambda x: np.ones_like(x),
    "far from the origin": lambda x: x + 1e5,
    "large": lambda x: x * 1e16,
    "a few values": lambda x: np.round(x),
    "tiny": lambda x: x * 1e-24,
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("block", [64, 2048])
def test_single_precision_changes_no_answer(kind, block):
    """Where its error bound leaves much open, or all: against float64 throughout."""
    random = np.random.RandomState(12)
    reference, samples = (HARD[kind](random.randn(n, 20).astype(np.float32)) for n in (150, 120))
    radii = [pr.manifold_radii(x) for x in (reference, samples)]
    expected = pr.covered(reference, radii[0], samples, radii[1])
    found = pr.inside_manifolds(reference, samples, block=block)
    np.testing.assert_array_equal(found[0], expected[1][:, 0])
    np.testing.assert_array_equal(found[1], expected[0][:, 0])


def test_block_sizes_change_nothing():
    random = np.random.RandomState(8)
    reference, samples = random.randn(101, 17).astype(np.float32), random.randn(83, 17).astype(np.float32)
    whole = pr.manifold_radii(reference, (1, 3))
    expected = pr.covered(reference, whole, samples, pr.manifold_radii(samples))
    for rows, columns in [(1, 101), (7, 2), (100, 13)]:
        np.testing.assert_array_equal(pr.manifold_radii(reference, (1, 3), rows, columns), whole)
        found = pr.covered(reference, whole, samples, pr.manifold_radii(samples), rows, columns)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    results = {pr.precision_recall(reference, samples, block=block) for block in (3, 50, 1000)}
    assert len(results) == 1


def test_too_few_images_or_unfit_features():
    with pytest.raises(ValueError, match="at least 4"):
        pr.manifold_radii(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        pr.manifold_radii(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="squared norm is below"):
        pr.precision_recall(np.full((5, 2), 1e25), np.zeros((5, 2)))


@pytest.mark.parametrize("decades", [2, 6, 12], ids=lambda decades: f"condition 1e{decades}")
def test_frechet_against_fifty_digits(decades):
    """A symmetric root in arbitrary precision of the very covariances that the metric was handed."""
    random = np.random.RandomState(11)
    sigmas = []
    for _ in range(2):
        rotation = np.linalg.qr(random.randn(12, 12))[0]
        sigma = (rotation * np.logspace(0, -decades, 12)) @ rotation.T
        sigmas.append((sigma + sigma.T) / 2)
    mu = random.randn(12) * 1e-3
    with mpmath.workdps(50):
        values, vectors = mpmath.eigsy(mpmath.matrix(sigmas[0].tolist()))
        root = vectors * mpmath.diag([mpmath.sqrt(abs(value)) for value in values]) * vectors.T
        inner = root * mpmath.matrix(sigmas[1].tolist()) * root
        trace = sum(mpmath.sqrt(abs(value)) for value in mpmath.eigsy((inner + inner.T) / 2, eigvals_only=True))
        exact = sum(mpmath.mpf(x) ** 2 for x in mu.tolist()) - 2 * trace
        exact += sum(mpmath.mpf(sigma[i, i]) for sigma in sigmas for i in range(12))
    ours = frechet_distance(Gaussian(mu, sigmas[0]), Gaussian(np.zeros(12), sigmas[1]))
    assert ours == pytest.approx(float(exact), rel=1e-9)
