"""torch-fidelity's figures of the same features, as a second opinion."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from benchmarks.fidelity import FidelityUnavailable, fidelity_metrics, load_fidelity
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception_score import inception_score
from evaluations.metrics.kernel_distance import kernel_distance, squared_discrepancy
from evaluations.metrics.precision_recall import precision_recall
from evaluations.metrics.statistics import fit_gaussian
from tests.support.evaluations import make_activations

RECIPE = {"seed": 8, "dims": 64, "n_reference": 700, "n_samples": 700, "weight_scale": 2.0, "classes": 10}


@pytest.fixture(scope="module")
def installed():
    try:
        return load_fidelity()
    except FidelityUnavailable as reason:
        pytest.skip(f"torch-fidelity: {reason}")


@pytest.mark.parametrize(("kind", "shift"), [("relu", 0.0), ("relu", 0.3), ("gauss", 0.1), ("large", 0.5)])
def test_same_figures(installed, kind, shift):
    reference, samples, weights = make_activations(RECIPE | {"kind": kind, "shift": shift})
    scale = 100 if kind == "large" else 1
    probabilities = softmax(samples @ weights / scale, axis=1)
    theirs = fidelity_metrics(reference, samples, probabilities)
    ours = frechet_distance(fit_gaussian(samples), fit_gaussian(reference))
    assert ours == pytest.approx(theirs["fid"], rel=1e-6)
    assert inception_score(probabilities) == pytest.approx(theirs["inception_score"], rel=1e-5)
    assert squared_discrepancy(reference, samples) == pytest.approx(theirs["kid"], rel=1e-8, abs=1e-10)
    # Their distances are roots in float32: one image on an edge may go the other way.
    found = precision_recall(reference, samples)
    assert found == pytest.approx((theirs["precision"], theirs["recall"]), abs=1.01 / 700)
    assert 0 < found[0] <= 1


def test_same_subsets_give_the_same_deviation(installed):
    """Theirs on the subsets that our seed draws, one at a time."""
    import torch

    reference, samples, _ = make_activations(RECIPE | {"kind": "relu", "shift": 0.2})
    random = np.random.default_rng(5)
    found = []
    for _ in range(4):
        chosen = [torch.from_numpy(x[random.choice(700, 100, replace=False)]).double() for x in (reference, samples)]
        kid = installed.metric_kid.kid_features_to_metric(*chosen, kid_subsets=1, kid_subset_size=100, verbose=False)
        found.append(kid["kernel_inception_distance_mean"])
    ours = kernel_distance(reference, samples, subsets=4, subset_size=100, seed=5)
    assert ours == pytest.approx((np.mean(found), np.std(found)), rel=1e-8)
