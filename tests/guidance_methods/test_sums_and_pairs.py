"""Sums of guidances, pairs of models, and the projection of their difference: against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from guidance_methods import (
    Adam,
    AdaptiveProjection,
    AtDenoised,
    Pair,
    ReverseKLRule,
    Stabilized,
    Sum,
    with_null_label,
    without_labels,
)
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.gaussian_data import ABAR, GaussianData, at, smooth_classifier

DATA, WEAK = GaussianData(), GaussianData(seed=3)
T = torch.tensor([5, 200, 500, 980])
Y = torch.tensor([0, 3, 4, 1])
X = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FIRST = ClassifierGuidance(smooth_classifier(), EntropyRule(2.0))
SECOND = ClassifierGuidance(smooth_classifier(seed=2), ReverseKLRule())


def column(values_B: Tensor) -> Tensor:
    return values_B.reshape(-1, 1, 1, 1)


class TestSum:
    def test_weights_schedules_and_intervals(self):
        found = Sum([(FIRST, 0.5), (SECOND, lambda t: t / 1000, (200, 500)), (FIRST, -2.0, None)])(X, T, y=Y)
        inside = column((T / 1000) * torch.tensor([0, 1, 1, 0]))
        expected = -1.5 * FIRST(X, T, y=Y) + inside * SECOND(X, T, y=Y)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    def test_a_term_outside_its_interval_is_not_called(self):
        def fails(x, t, y):
            raise AssertionError

        assert not Sum([(fails, 1.0, (300, 400))])(X, T, y=Y).any()

    def test_each_is_told_what_it_wants(self):
        x_0 = DATA.x_0(X, at(T, X))
        both = Sum([(FIRST, 1.0), (AtDenoised(SECOND), 3.0)])
        assert both.wants_x0 and not Sum([(FIRST, 1.0)]).wants_x0
        expected = FIRST(X, T, y=Y) + 3 * SECOND(x_0, T, y=Y)
        torch.testing.assert_close(both(X, T, x_0=x_0, y=Y), expected, rtol=1e-9, atol=1e-12)

    def test_a_reset_reaches_the_terms(self):
        adam = Stabilized(FIRST, Adam())
        guidance = Sum([(adam, 1.0), (SECOND, 0.0)])
        first = guidance(X, T, y=Y)
        guidance(2 * X, T, y=Y)
        guidance.reset()
        assert torch.equal(guidance(X, T, y=Y), first)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_in_every_sampler_two_halves_are_one(self, sampler):
        diffusion = create_gaussian_diffusion(timestep_respacing="ddim5")
        images = []
        for cond_fn in (FIRST, Sum([(FIRST, 0.5), (FIRST, 0.5)])):
            torch.manual_seed(0)
            options = {"noise": X, "model_kwargs": {"y": Y}, "cond_fn": cond_fn}
            images.append(sampling_loop(diffusion, sampler)(DATA.eps, X.shape, **options))
        torch.testing.assert_close(*images)

    @pytest.mark.parametrize(
        ("terms", "says"),
        [([], "terms: found none"), ([(FIRST, float("nan"))], "weight: found nan"),
         ([(FIRST, 1.0, (5, 1))], r"interval: found \(5, 1\), expected \(lowest, highest\)")],
    )  # fmt: skip
    def test_what_makes_no_sense_is_refused(self, terms, says):
        with pytest.raises(ValueError, match=says):
            Sum(terms)


def with_variance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([DATA.eps(x, t), 0.5 * x.tanh()], dim=1)


class TestPair:
    def test_the_formula(self):
        """uncond + w (cond - uncond), the variance from cond; w by sample, inside the interval."""
        strong, weak = DATA.eps(X, T), WEAK.eps(X, T)
        found = Pair(with_variance, without_labels(WEAK.eps), 2.5)(X, T, y=Y)
        torch.testing.assert_close(found[:, :1], weak + 2.5 * (strong - weak), rtol=1e-9, atol=1e-12)
        assert torch.equal(found[:, 1:], 0.5 * X.tanh())
        found = Pair(DATA.eps, WEAK.eps, lambda t: t / 100, interval=(200, 500))(X, T, y=Y)
        w = column(torch.tensor([1, 2.0, 5.0, 1], dtype=torch.float64))
        torch.testing.assert_close(found, weak + w * (strong - weak), rtol=1e-9, atol=1e-12)

    def test_without_scale_or_interval_the_strong_model_is_alone(self):
        def fails(x, t, y):
            raise AssertionError

        assert torch.equal(Pair(with_variance, fails)(X, T, y=Y), with_variance(X, T, Y))
        assert torch.equal(Pair(with_variance, fails, 3.0, interval=(6, 199))(X, T, y=Y), with_variance(X, T, Y))

    def test_one_network_in_one_call(self):
        calls = []

        def model(x, t, y):
            calls.append(y.tolist())
            return torch.cat([DATA.eps(x, t) * column(1 + y), x], dim=1)

        found = with_null_label(model, null_label=9, scale=3.0)(X, T, y=Y)
        assert calls == [[0, 3, 4, 1, 9, 9, 9, 9]]
        expected = Pair(model, lambda x, t, y: model(x, t, y * 0 + 9), 3.0)(X, T, y=Y)
        torch.testing.assert_close(found, expected)
        assert torch.equal(with_null_label(model, 9)(X, T, y=Y), model(X, T, Y))

    def test_pairs_of_pairs_with_a_classifier(self):
        """Autoguidance of classifier-free guidance, and EDS on it: the samplers' sums of shifts."""
        third = GaussianData(seed=8)
        pair = Pair(Pair(DATA.eps, WEAK.eps, 2.0), third.eps, 1.5)
        strong = 2 * DATA.eps(X, T) - WEAK.eps(X, T)
        torch.testing.assert_close(pair(X, T, y=Y), 1.5 * strong - 0.5 * third.eps(X, T), rtol=1e-9, atol=1e-12)
        guided = FIRST.guide_eps(pair(X, T, y=Y), X, T, Y, ABAR)
        shift = (1 - at(T, X)).sqrt() * FIRST(X, T, y=Y)
        torch.testing.assert_close(guided, pair(X, T, y=Y) - shift, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_in_every_sampler(self, sampler):
        """Beside classifier guidance, as a model written out by hand."""
        diffusion = create_gaussian_diffusion(timestep_respacing="ddim5", learn_sigma=True)

        def by_hand(x, t, y):
            w = column(torch.where((t >= 100) & (t <= 700), 1.5, 1.0))
            strong = with_variance(x, t, y)
            return torch.cat([WEAK.eps(x, t) + w * (strong[:, :1] - WEAK.eps(x, t)), strong[:, 1:]], dim=1)

        images = []
        for model in (Pair(with_variance, without_labels(WEAK.eps), 1.5, interval=(100, 700)), by_hand):
            torch.manual_seed(0)
            cond_fn = ClassifierGuidance(smooth_classifier(), ConstantRule())
            options = {"noise": X, "model_kwargs": {"y": Y}, "cond_fn": cond_fn, "clip_denoised": False}
            images.append(sampling_loop(diffusion, sampler)(model, X.shape, **options))
        torch.testing.assert_close(*images)

    def test_what_makes_no_sense_is_refused(self):
        with pytest.raises(ValueError, match="scale: found inf"):
            Pair(DATA.eps, WEAK.eps, float("inf"))
        with pytest.raises(ValueError, match="interval: found"):
            Pair(DATA.eps, WEAK.eps, 2.0, interval=(5, 1))


class TestProjection:
    def test_with_nothing_set_it_changes_nothing(self):
        plain = Pair(DATA.eps, WEAK.eps, 3.0)(X, T, y=Y)
        same = Pair(DATA.eps, WEAK.eps, 3.0, projection=AdaptiveProjection(ABAR, eta=1.0))(X, T, y=Y)
        torch.testing.assert_close(same, plain, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("predicts", ["eps", "v", "x_0"])
    @pytest.mark.parametrize(("eta", "norm"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.6), (0.3, 0.6)])
    def test_the_formula_in_x_0_whatever_the_models_predict(self, predicts, eta, norm):
        abar = at(T, X)
        models = [
            {"eps": data.eps, "v": data.v, "x_0": lambda x, t, data=data, **_: data.x_0(x, at(t, x))}[predicts]
            for data in (DATA, WEAK)
        ]
        if predicts == "v":
            models = [without_labels(model) for model in models]
        pair = Pair(*models, 3.0, projection=AdaptiveProjection(ABAR, predicts, eta, norm))
        found = pair(X, T, y=Y)

        strong, weak = DATA.x_0(X, abar), WEAK.x_0(X, abar)
        expected = []
        for d, at_strong in zip(strong - weak, strong, strict=True):
            d, at_strong = d.flatten(), at_strong.flatten()
            if norm and d.norm() > norm:
                d = d * norm / d.norm()
            parallel = (d @ at_strong) / (at_strong @ at_strong) * at_strong
            expected.append((at_strong + 2 * (d - parallel + eta * parallel)).reshape(1, 4, 4))
        expected = torch.stack(expected)
        sigma, alpha = (1 - abar).sqrt(), abar.sqrt()
        eps = (X - alpha * expected) / sigma
        wanted = {"eps": eps, "v": alpha * eps - sigma * expected, "x_0": expected}[predicts]
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)

    def test_the_momentum_adds_up(self):
        """d_n + beta d_(n-1) + beta^2 d_(n-2), of this batch alone."""
        projection = AdaptiveProjection(ABAR, "x_0", eta=1.0, momentum=-0.5)
        pair = Pair(lambda x, t: 3 * x, lambda x, t: x, 2.0, projection=projection)
        for _ in range(2):
            for t, factor in ((900, 1.0), (800, 0.5), (700, 0.75)):
                torch.testing.assert_close(pair(X, torch.full((4,), t)), 3 * X + factor * 2 * X)

    def test_the_momentum_counts_a_step_once(self):
        """The chain rule through the pair evaluates it a second time in a step."""
        once, twice = (
            Pair(lambda x, t: 3 * x, lambda x, t: x, 2.0, projection=AdaptiveProjection(ABAR, "x_0", momentum=-0.5))
            for _ in range(2)
        )
        for step in range(900, 500, -100):
            expected, x = once(X, torch.full((4,), step)), X.clone().requires_grad_()
            for _ in range(2):
                found = twice(x, torch.full((4,), step))
                torch.testing.assert_close(found, expected)
        (kept,) = twice.projection.state._tensors.values()
        assert not kept.requires_grad  # no graph of an earlier step is held

    def test_what_makes_no_sense_is_refused(self):
        for options, says in (({"norm": -1.0}, "norm: found -1"), ({"momentum": 1.0}, "momentum: found 1"),
                              ({"predicts": "score"}, "predicts: found 'score'")):  # fmt: skip
            with pytest.raises(ValueError, match=says):
                AdaptiveProjection(ABAR, **options)
