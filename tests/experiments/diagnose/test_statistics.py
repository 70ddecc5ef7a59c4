"""The statistics on numbers that are known: planted temperatures and errors, intervals, halves, the verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.diagnose.measures import TEMPERATURES
from experiments.diagnose.statistics import (
    calibration_gaps,
    estimates,
    mean,
    resampled,
    summarize,
    temperature,
)
from experiments.diagnose.verdict import flags, verdict

N, L, K = 400, 3, 5


def drawn(true_temperature: float, seed: int = 0):
    """Logits [N, L, K] and labels of which they are `true_temperature` times too certain."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(N, L, K))
    p = np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)
    y = np.array([[rng.choice(K, p=row) for row in image] for image in p])
    return true_temperature * z, y


def arrays(true_temperature: float = 1.0, scale: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    """What a classifier "c" might measure, with the best gamma at `scale` and a rule that errs for half the images."""
    z, y = drawn(true_temperature, seed)
    rng = np.random.default_rng(seed + 1)
    log_p = torch.log_softmax(torch.tensor(z)[:, :, None] / torch.tensor(TEMPERATURES)[:, None], dim=3).numpy()
    cross_entropy = -np.take_along_axis(log_p, y[:, :, None, None].repeat(len(TEMPERATURES), 2), axis=3)[..., 0]
    p = np.exp(log_p[:, :, len(TEMPERATURES) // 2])
    square = rng.uniform(1, 2, size=(N, L, 2))
    along = scale * square * (1 + rng.normal(size=(N, L, 2)))
    along[..., 1] -= 0.8 * scale * square[..., 1]
    return {
        "unguided": rng.uniform(50, 60, size=(N, L)), "c/right": (z.argmax(2) == y).astype(float),
        "c/top5": np.ones((N, L)), "c/cross_entropy": cross_entropy, "c/confidence": p.max(2),
        "c/entropy": -(p * np.log(p)).sum(2) / np.log(K), "c/gradient": rng.uniform(0.1, 1, size=(N, L)),
        "c/along": along, "c/square": square,
    }  # fmt: skip


def summary(found: dict[str, np.ndarray]) -> dict:
    return summarize(found, ["c"], ["constant", "entropy"], [10, 500, 900], K, replicates=200) | {"steps": 1000}


@pytest.mark.parametrize("planted", [0.3, 1.0, 1.7, 6.0])
def test_a_planted_temperature_is_recovered(planted):
    result = summary(arrays(planted))
    value, low, high = result["classifiers"]["c"]["overall"]["temperature"]
    assert low < planted < high and high / low < 1.5
    # The minimum itself, to far better than its interval.
    z, y = (torch.tensor(drawn_value).flatten(0, 1) for drawn_value in drawn(planted))
    grid = np.geomspace(value * 0.98, value * 1.02, 81)
    losses = [float(F.cross_entropy(z / t, y)) for t in grid]
    assert value == pytest.approx(grid[int(np.argmin(losses))], rel=1.5e-3)
    assert {0.3: "too unsure", 1.0: "calibrated"}.get(planted, "too certain") in verdict(result)[0]


def test_a_temperature_beyond_all_is_the_last():
    falling = -np.arange(len(TEMPERATURES), dtype=float)
    assert temperature(falling) == pytest.approx(TEMPERATURES[-1])
    assert temperature(falling[::-1]) == pytest.approx(TEMPERATURES[0])


def test_the_calibration_error_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    confidence, right = rng.uniform(size=200), (rng.uniform(size=200) < 0.5).astype(float)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean()) if inside.any() else 0
    found = np.abs(mean(np.ones((1, 200)), calibration_gaps(confidence, right))).sum()
    assert found == pytest.approx(expected)


def test_intervals_cover_as_often_as_they_say():
    """Images with correlated levels: an interval over pairs would be too narrow by sqrt(L)."""
    rng, inside = np.random.default_rng(0), 0
    weights = resampled(100, 200, 0)
    for _ in range(300):
        values = np.repeat(rng.normal(size=(100, 1)), 8, axis=1)
        _, low, high = estimates(mean(weights, values).mean(axis=1))
        inside += low < 0 < high
    assert 0.9 < inside / 300 < 0.985


def test_scales_are_fitted_on_one_half_and_judged_on_the_other():
    found = arrays(scale=0.5)
    rules = summary(found)["classifiers"]["c"]["rules"]
    fit, judge = (slice(start, None, 2) for start in (0, 1))
    for index, rule in enumerate(("constant", "entropy")):
        along, square = found["c/along"][..., index], found["c/square"][..., index]
        gamma = along[fit].sum() / square[fit].sum()
        gain = (2 * gamma * along[judge] - gamma**2 * square[judge]).mean()
        np.testing.assert_allclose([rules[rule]["gamma"][0], rules[rule]["gain"][0]], [gamma, gain])
    assert rules["constant"]["gamma"][0] == pytest.approx(0.5, abs=0.1)
    beyond = rules["entropy"]["over_constant"]
    assert beyond[2] < 0 and beyond[0] == rules["entropy"]["gain"][0] - rules["constant"]["gain"][0]
    assert rules["constant at 1"]["gamma"] == [1, 1, 1]


def test_a_direction_that_only_harms_gets_scale_0():
    found = arrays(scale=-0.5)
    result = summary(found)
    constant = result["classifiers"]["c"]["rules"]["constant"]
    assert constant["gamma"][0] == 0 and constant["gain"][0] == 0
    assert result["classifiers"]["c"]["levels"]["s_star"][0][0] == pytest.approx(-0.5, abs=0.1)
    assert verdict(result)[-1].startswith("Measure more images")


def test_a_gradient_of_zero_has_no_scale_and_json_no_nan():
    found = arrays()
    for key in ("c/along", "c/square"):
        found[key] = found[key] * 0
    result = summary(found)
    json.dumps(result | {"verdict": verdict(result)}, allow_nan=False)
    assert result["classifiers"]["c"]["levels"]["s_star"] == [[None, None, None]] * L


@pytest.mark.parametrize("better", [0.0, 0.5])
def test_the_verdict_tries_what_is_better_beyond_doubt(better):
    found = arrays()
    found["c/along"][..., 1] = found["c/along"][..., 0] + better
    found["c/square"][..., 1] = found["c/square"][..., 0]
    result = summary(found)
    told = verdict(result)
    assert len(told) == 5 and all(sentence.endswith(".") for sentence in told)
    assert ("--eds" in told[-1]) == bool(better)


def test_the_flags_of_rules():
    assert flags("constant", 0.75, 1000) == "--classifier_scale 0.75"
    assert flags("entropy", 0.5, 1000) == "--eds --classifier_scale 0.5"
    assert flags("elucd", 1.23456, 1000) == "--guidance elucd --classifier_scale 1.23"
    assert flags("timestep", 0.9, 1000) == "--guidance timestep --guidance_factor 0.002 --classifier_scale 0.9"
