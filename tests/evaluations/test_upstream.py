"""Our numbers against those that upstream's evaluator gave on the same activations (tests/data/*.json)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import linalg
from scipy.special import softmax

from evaluations.evaluator import FIDStatistics, InvalidFIDException, ManifoldEstimator
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.manifolds import UPSTREAM_BLOCK, upstream_distances
from evaluations.metrics.precision_recall import precision_recall
from evaluations.metrics.statistics import fit_gaussian
from tests.support.evaluations import make_activations, precision_recall_by_definition
from tests.support.helpers import ROOT

CASES = json.loads((ROOT / "tests" / "data" / "evaluator_upstream.json").read_text())["cases"]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case["recipe"]["name"])
def case(request):
    recipe = request.param["recipe"]
    return recipe, make_activations(recipe), request.param["upstream"]


def _exact_frechet(first: np.ndarray, second: np.ndarray) -> float:
    """In float64 without any covariance's root: from the features if they are few, else from eigenvalues."""
    gaussians = [fit_gaussian(first), fit_gaussian(second)]
    difference = gaussians[0].mu.astype(np.float64) - gaussians[1].mu
    if min(len(first), len(second)) < first.shape[1]:
        centred = [(x - x.mean(axis=0, dtype=np.float64)) / np.sqrt(len(x) - 1) for x in (first, second)]
        root = linalg.svdvals(centred[0] @ centred[1].T).sum()
    else:
        root = np.sqrt(linalg.eigvals(gaussians[0].sigma @ gaussians[1].sigma).real).sum()
    return difference @ difference + sum(np.trace(g.sigma) for g in gaussians) - 2 * root


def test_frechet_distance(case):
    _, (reference, samples, _), upstream = case
    ours = frechet_distance(fit_gaussian(samples), fit_gaussian(reference))
    assert ours == pytest.approx(upstream["fid"], rel=1e-6)
    assert ours == pytest.approx(_exact_frechet(samples, reference), rel=1e-9)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow if case["recipe"]["dims"] > 1000 else ()) for case in CASES],
    ids=lambda case: case["recipe"]["name"],
)
def test_frechet_distance_from_covariances_alone(case):
    """As of stored statistics: no features to take a factor from."""
    reference, samples, _ = make_activations(case["recipe"])
    first, second = (FIDStatistics(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (samples, reference))
    ours = first.frechet_distance(second)
    assert ours == pytest.approx(case["upstream"]["fid"], rel=1e-6)
    assert ours == pytest.approx(_exact_frechet(samples, reference), rel=1e-9)


def test_inception_score(case):
    _, (_, samples, weights), upstream = case
    probabilities = softmax(samples @ weights, axis=1)
    assert inception_score(probabilities) == pytest.approx(upstream["inception_score"], rel=1e-5)


@pytest.mark.slow
def test_precision_recall(case):
    recipe, (reference, samples, _), upstream = case
    found = precision_recall(reference, samples)
    if recipe["n_samples"] <= 1000:
        assert found == precision_recall_by_definition(reference, samples)
    images = 1.001 / np.array([recipe["n_samples"], recipe["n_reference"]])
    single = np.array([upstream["precision_single"], upstream["recall_single"]])
    half = np.array([upstream["precision"], upstream["recall"]])
    assert (np.abs(found - single) <= images).all()  # float32: at most one image on the edge
    assert (np.abs(found - half) <= 0.01).all()


@pytest.mark.slow
def test_precision_recall_in_half_precision(case):
    """As released: also where half precision overflows, and where its coarse steps decide.

    Up to three images: the order in which a device sums squares shows in a norm's last bit now and then.
    """
    recipe, (reference, samples, _), upstream = case
    found = precision_recall(reference, samples, block=UPSTREAM_BLOCK, distances=upstream_distances)
    images = 3.001 / np.array([recipe["n_samples"], recipe["n_reference"]])
    assert (np.abs(np.array(found) - [upstream["precision"], upstream["recall"]]) <= images).all()


def test_half_precision_steps_and_overflow():
    """Closed forms: 2049 is no half number, and 300 squared is none at all, then for every entry."""
    rows, columns = np.array([[45.0, 5.0]]), np.array([[0.0, 0.0], [45.0, 5.0]])
    np.testing.assert_array_equal(upstream_distances(rows, columns), [[2050, 0]])
    assert upstream_distances(rows + [[0, -3.0]], columns)[0, 0] == 2029
    with_large = np.concatenate([columns, [[300.0, 0.0]]])
    np.testing.assert_array_equal(upstream_distances(np.array([[45.0, 4.8]]), with_large)[0, 2], np.float32(65048.04))


@pytest.mark.slow
def test_manifold_estimator(case):
    _, (reference, samples, _), upstream = case
    estimator = ManifoldEstimator(None, 640, 500, nhood_sizes=(2, 5), clamp_to_percentile=60)
    radii = estimator.manifold_radii(reference)
    np.testing.assert_allclose(radii.sum(axis=0), upstream["evaluate"]["radii_sum"], rtol=1e-5)
    found = estimator.evaluate(reference, radii, samples)
    assert found["batch_predictions"].sum(axis=0).tolist() == upstream["evaluate"]["predictions"]
    assert found["fraction"] == pytest.approx(upstream["evaluate"]["fraction"])
    assert found["max_realisim_score"].mean() == pytest.approx(upstream["evaluate"]["realism_mean"], rel=1e-4)
    assert found["nearest_indices"][:20].tolist() == upstream["evaluate"]["nearest_first"]
    precision, recall = estimator.evaluate_pr(reference, radii, samples, np.zeros((len(samples), 1)) - 1)
    assert (precision.shape, recall.shape) == ((2,), (1,))
    np.testing.assert_allclose(precision, np.array(upstream["evaluate"]["predictions"]) / len(samples))
    assert recall[0] == 0


def test_fid_statistics():
    gaussian = FIDStatistics(np.zeros(2), np.eye(2))
    assert gaussian.frechet_distance(FIDStatistics(np.ones(2), 4 * np.eye(2)), eps=1e-3) == pytest.approx(4)
    with pytest.raises(InvalidFIDException, match="length"):
        gaussian.frechet_distance(FIDStatistics(np.zeros(3), np.eye(3)))
