"""The measure on a Gaussian mixture, whose true gradient is known: s* is 1 there, and L smallest."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from experiments.diagnose import diagnose
from experiments.diagnose.measures import Measurement
from experiments.mixture.networks import entropy_constrained, exact_noise, sharpened
from experiments.mixture.study import Laboratory, read_spec
from guided_diffusion.config.create import create_gaussian_diffusion

IMAGES, LEVELS = 1000, 4


@dataclasses.dataclass(frozen=True)
class TwiceRule(ConstantRule):
    """Plain guidance that is twice too large."""

    def log_scale(self, p, t, grad_norm):
        return torch.full_like(p.log_r_B, math.log(2))


@dataclasses.dataclass(frozen=True)
class OwnPassRule(EntropyRule):
    """EDS as a rule with a direction of its own, which is measured by a backward pass of its own."""

    def direction(self, p, y):
        return super().direction(p, y)


@pytest.fixture(scope="module")
def mixture():
    return Laboratory(read_spec()).mixture("plane")


@pytest.fixture(scope="module")
def data(mixture):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(IMAGES) % mixture.num_classes
    return mixture.draw(y, generator), y


@pytest.fixture(scope="module")
def diffusion():
    return create_gaussian_diffusion(steps=1000)


@pytest.fixture(scope="module")
def result(mixture, data, diffusion):
    def conditional(x, t, y):
        eps = torch.empty_like(x)
        for label in range(mixture.num_classes):
            own = mixture.class_J == label
            alone = dataclasses.replace(mixture, means_JD=mixture.means_JD[own], class_J=mixture.class_J[own])
            eps[y == label] = exact_noise(alone)(x[y == label], t[y == label])
        return eps

    classifiers = {
        "exact": sharpened(mixture, 1.0), "sharp": sharpened(mixture, 3.0), "soft": sharpened(mixture, 0.4),
        "ect": entropy_constrained(mixture, 0.5),
    }  # fmt: skip
    rules = {"constant": ConstantRule(), "twice": TwiceRule(), "entropy": EntropyRule(), "own": OwnPassRule()}
    return diagnose(
        exact_noise(mixture), classifiers, diffusion, *data, cond_model=conditional, rules=rules, levels=LEVELS,
        batch_size=IMAGES, replicates=300,
    )  # fmt: skip


def test_s_is_1_for_the_exact_gradient(result):
    scales = [*result["classifiers"]["exact"]["levels"]["s_star"], *result["pair"]["levels"]["s_star"]]
    assert len(scales) == 2 * LEVELS
    for value, low, high in scales:
        assert low < 1 < high and abs(value - 1) < 0.2


def test_the_loss_is_smallest_for_the_exact_gradient(result):
    """At scale 1 nearly as low as at the best, and lower than any other classifier's at its best."""
    gains = {name: entry["rules"]["constant"]["gain"][0] for name, entry in result["classifiers"].items()}
    at_1 = result["classifiers"]["exact"]["rules"]["constant at 1"]["gain"][0]
    assert at_1 == pytest.approx(gains["exact"], rel=0.02)
    assert all(at_1 > 1.02 * gain for name, gain in gains.items() if name != "exact")
    assert "exact" in result["verdict"][3]


def test_the_exact_pair_is_the_exact_gradient(result):
    np.testing.assert_allclose(result["classifiers"]["exact"]["levels"]["cosine"], 1, atol=1e-6)
    assert result["classifiers"]["sharp"]["overall"]["cosine"][0] < 0.99
    exact = result["classifiers"]["exact"]["rules"]["constant"]
    np.testing.assert_allclose(result["pair"]["rules"]["constant"]["gain"], exact["gain"], rtol=1e-6)


def test_a_known_optimum_is_found(result):
    for entry in result["classifiers"].values():
        rules = entry["rules"]
        np.testing.assert_allclose(rules["twice"]["gamma"], np.array(rules["constant"]["gamma"]) / 2)
        np.testing.assert_allclose(rules["twice"]["gain"], rules["constant"]["gain"], rtol=1e-9)
        assert rules["twice"]["over_constant"] == pytest.approx([0, 0, 0], abs=1e-9)


def test_temperatures_are_found(result):
    for name, planted in (("exact", 1), ("sharp", 3), ("soft", 0.4)):
        value, low, high = result["classifiers"][name]["overall"]["temperature"]
        assert low < planted < high and value == pytest.approx(planted, rel=0.1)
    exact = result["classifiers"]["exact"]["overall"]["temperature"]
    np.testing.assert_allclose(result["classifiers"]["sharp"]["overall"]["temperature"], np.array(exact) * 3, rtol=2e-3)


@pytest.mark.parametrize("name", ["sharp", "soft"])
def test_s_minimises_the_loss_by_its_definition(name, result, mixture, data, diffusion):
    """Of E |eps - (eps_u - sigma gamma g)|^2 at every level, for the noise that was used."""
    (x_0, y), seen = data, []

    def model(x, t):
        seen.append((x, t))
        return exact_noise(mixture)(x, t)

    classifier = sharpened(mixture, {"sharp": 3.0, "soft": 0.4}[name])
    Measurement(model, {}, diffusion, {}, levels=LEVELS).measure(x_0, y, range(IMAGES))
    for (x, t), (found, *_) in zip(seen, result["classifiers"][name]["levels"]["s_star"], strict=True):
        abar = diffusion.alphas_cumprod[int(t[0])]
        eps = (x - abar**0.5 * x_0) / (1 - abar) ** 0.5

        def loss(gamma, x=x, t=t, abar=abar, eps=eps):
            guidance = ClassifierGuidance(classifier, ConstantRule(float(gamma)))(x, t, y)
            return float((eps - exact_noise(mixture)(x, t) + (1 - abar) ** 0.5 * guidance).square().sum())

        assert minimize_scalar(loss, bounds=(0, 5), method="bounded").x == pytest.approx(found, abs=1e-4)


def test_one_pass_serves_all_rules_with_the_plain_direction(result):
    for entry in result["classifiers"].values():
        for key, expected in entry["rules"]["own"].items():
            np.testing.assert_allclose(entry["rules"]["entropy"][key], expected, rtol=1e-5, atol=1e-7)


def test_a_certain_classifier_still_has_its_factor(mixture, data, diffusion):
    """The gradient underflows, EDS's product does not: it is that of `ClassifierGuidance`."""
    x_0, y = (value[:8] for value in data)
    certain, t = sharpened(mixture, 1e4), []

    def model(x, step):
        t.append((x, step))
        return exact_noise(mixture)(x, step)

    rules = {"constant": ConstantRule(), "entropy": EntropyRule()}
    found = Measurement(model, {"c": certain}, diffusion, rules, levels=20).measure(x_0, y, range(8))
    guidance = ClassifierGuidance(certain, EntropyRule())(*t[0], y)
    np.testing.assert_allclose(found["c/square"][:, 0, 1], guidance.square().sum(dim=1), rtol=1e-5)
    assert (found["c/gradient"][:, 0] == 0).any() and (found["c/square"][:, 0, 1] > 0).all()


def test_noise_depends_on_seed_number_and_level_alone(mixture, data, diffusion):
    x_0, y = (value[:6] for value in data)
    measurement = Measurement(exact_noise(mixture), {"c": sharpened(mixture, 1)}, diffusion, {}, levels=3)
    whole = measurement.measure(x_0, y, range(6))["unguided"]
    turned = measurement.measure(x_0.flip(0), y.flip(0), range(5, -1, -1))["unguided"]
    np.testing.assert_allclose(whole, turned[::-1], rtol=1e-12)
    other = Measurement(exact_noise(mixture), {}, diffusion, {}, levels=3, seed=1)
    assert not np.isclose(other.measure(x_0, y, range(6))["unguided"], whole).any()


def test_a_model_of_x_0_is_measured_as_its_noise(mixture, data):
    x_0, y = (value[:6] for value in data)
    predicts_x_0 = create_gaussian_diffusion(steps=1000, predict_xstart=True)
    measured = [
        Measurement(model, {}, process, {}, levels=3).measure(x_0, y, range(6))["unguided"]
        for model, process in (
            (lambda x, t: mixture.denoise(x, t), predicts_x_0),
            (exact_noise(mixture), create_gaussian_diffusion(steps=1000)),
        )
    ]
    np.testing.assert_allclose(*measured, rtol=1e-6)


def test_without_a_model_the_loss_is_left_out(mixture, data, diffusion):
    x_0, y = (value[:20] for value in data)
    result = diagnose(None, {"c": sharpened(mixture, 1)}, diffusion, x_0, y, levels=2, replicates=10)
    entry = result["classifiers"]["c"]
    assert result["unguided"] is None and entry["rules"] == {} and "s_star" not in entry["levels"]
    assert "left out" in result["verdict"][-1] and len(result["verdict"]) <= 5


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"levels": 1001}, "levels: found 1001"),
        ({"rules": {"constant": ConstantRule(2.0)}}, "rules: constant has gamma 2.0"),
    ],
)
def test_impossible_arguments(change, line, mixture, data, diffusion):
    with pytest.raises(ValueError, match=line):
        diagnose(exact_noise(mixture), {"c": sharpened(mixture, 1)}, diffusion, *data, **change)


def test_outputs_that_are_not_finite(mixture, data, diffusion):
    broken = {"c": lambda x, t: sharpened(mixture, 1)(x, t) * math.nan}
    with pytest.raises(Exception, match="^c: its logits are not finite at t = 125"):
        diagnose(exact_noise(mixture), broken, diffusion, *data, levels=LEVELS)
    with pytest.raises(Exception, match="^unguided: not finite"):
        diagnose(lambda x, t: x / 0, {"c": sharpened(mixture, 1)}, diffusion, *data, levels=LEVELS)
