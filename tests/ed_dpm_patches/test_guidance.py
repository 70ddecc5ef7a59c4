"""ClassifierGuidance: the pull-back, half-precision classifiers, safety, and its report."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu.checks import Biased
from ed_dpm_patches import (
    ClassifierGuidance,
    ConstantRule,
    EntropyRule,
    GradientNormRule,
    RangeRule,
    TimestepRule,
)
from ed_dpm_patches.scale_stats import ScaleReport, summary_line
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop
from guided_diffusion.models.mixed_precision import LowPrecision
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support import exact
from tests.support.networks import CLASSES, small_classifier, small_unet


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 1, 8, 8, generator=generator)
    return x, torch.tensor([5, 100, 300, 500, 800, 999]), torch.arange(6) % CLASSES


def test_plain_guidance_is_the_scaled_gradient_of_log_p(batch):
    x, t, y = batch
    classifier = small_classifier()
    x_in = x.clone().requires_grad_(True)
    log_p = classifier(x_in, t).log_softmax(dim=-1)[range(6), y].sum()
    expected = 2.5 * torch.autograd.grad(log_p, x_in)[0]
    torch.testing.assert_close(ClassifierGuidance(classifier, ConstantRule(2.5))(x, t, y=y), expected)


def test_eds_against_finite_differences(batch):
    """s is not differentiated: the guidance is s at x times the slope of log p, for every direction."""
    x, t, y = batch
    x = x.double()
    generator = torch.Generator().manual_seed(7)
    first, second = (torch.randn(n, m, generator=generator, dtype=torch.float64) / 8 for n, m in ((64, 30), (30, 10)))

    def classifier(at: Tensor, t: Tensor) -> Tensor:
        return 9 * torch.tanh(at.flatten(1) @ first) @ second

    p = classifier(x, t).softmax(-1)
    scale = 2.0 * math.log(CLASSES) / -(p * p.log()).sum(-1)
    guidance = ClassifierGuidance(classifier, EntropyRule(2.0))(x, t, y=y)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = 1e-6

    def log_p(at: Tensor) -> Tensor:
        return classifier(at, t).log_softmax(-1)[range(6), y]

    slope = (log_p(x + step * direction) - log_p(x - step * direction)) / (2 * step)
    torch.testing.assert_close((guidance * direction).flatten(1).sum(1), scale * slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("doubt", [1e-3, 1e-7, 1e-13, 1e-20, 1e-30])
@pytest.mark.parametrize("eds", [True, False])
def test_half_precision_classifiers_keep_the_signal(batch, dtype, doubt, eds):
    """Direction and size against arbitrary-precision v and a float64 Jacobian, down to 1 - p_y = 1e-30."""
    x, t, _ = batch
    y = torch.full((6,), 4)
    network = small_classifier()
    bias = torch.zeros(CLASSES)
    bias[4] = -math.log(doubt)
    torso = LowPrecision(network, None if dtype is torch.float32 else dtype)
    classifier = Biased(torso, bias)
    rule = (EntropyRule if eds else ConstantRule)(2.0)
    found = ClassifierGuidance(classifier, rule)(x, t, y=y).double()

    logits = classifier(x, t)  # what the half-precision network says is what v is exact for
    rows = []
    for row in logits.tolist():
        with mp.workdps(exact.digits_for(row)):
            rows.append([float(v) for v in exact.gradient_on_logits(row, 4, 2.0, eds)])
    x_in = x.clone().requires_grad_(True)
    v = torch.tensor(rows, dtype=torch.float64)
    size = v.abs().sum(1, keepdim=True)
    (unit,) = torch.autograd.grad(network(x_in, t), x_in, (v / size).float())
    reference = unit.double() * size[:, :, None, None]

    found, reference = found.flatten(1), reference.flatten(1)
    cosine = torch.cosine_similarity(found / size, reference / size)
    ratio = (found / size).norm(dim=1) / (reference / size).norm(dim=1)
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    assert (1 - cosine).max() < tolerance
    assert (ratio - 1).abs().max() < tolerance


def plain_gradient(classifier, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    x_in = x.clone().requires_grad_(True)
    return torch.autograd.grad(classifier(x_in, t).log_softmax(-1)[range(len(x)), y].sum(), x_in)[0]


def test_range_and_timestep_rules_follow_their_formulas(batch):
    """Supplement Eq. 1 and 2, per sample, with t on the original scale."""
    x, t, y = batch  # t = 5, 100, 300, 500, 800, 999
    classifier = small_classifier()
    plain = plain_gradient(classifier, x, t, y)
    in_range = torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 1.0])
    found = ClassifierGuidance(classifier, RangeRule(2.0, factor=3.0, until=300))(x, t, y=y)
    torch.testing.assert_close(found, 2.0 * in_range[:, None, None, None] * plain)
    found = ClassifierGuidance(classifier, TimestepRule(2.0, factor=0.01, num_timesteps=1000))(x, t, y=y)
    torch.testing.assert_close(found, 2.0 * 0.01 * (1000 - t)[:, None, None, None] * plain)


def test_gradient_norm_rule_strengthens_the_weak_gradients_alone(batch):
    """The text of Eq. 13, not its print: C where the norm is below M."""
    x, t, y = batch
    classifier = small_classifier()
    plain = plain_gradient(classifier, x, t, y)
    norms = plain.flatten(1).norm(dim=1)
    bound = float(norms.mean())
    guidance = ClassifierGuidance(classifier, GradientNormRule(2.0, factor=50.0, bound=bound))
    factor = torch.where(norms < bound, 50.0, 1.0)
    assert set(factor.tolist()) == {1.0, 50.0}
    torch.testing.assert_close(guidance(x, t, y=y), 2.0 * factor[:, None, None, None] * plain)
    assert guidance.report.summary()["maximum"] == pytest.approx(100.0)


@pytest.mark.parametrize("respacing", ["ddim5", "7", "3,2"])
def test_rules_see_original_timesteps_under_respacing(respacing):
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing=respacing)
    scales = {}
    guidance = ClassifierGuidance(
        small_classifier(),
        TimestepRule(1.0, factor=1.0, num_timesteps=1000),
        observer=lambda seen: scales.update({int(seen["t"][0]): float(seen["scale"][0])}),
    )
    y = torch.tensor([1, 2])
    diffusion.p_sample_loop(
        _Unlabelled(small_unet()), (2, 1, 8, 8), cond_fn=guidance, model_kwargs={"y": y}, device="cpu"
    )
    assert sorted(scales) == diffusion.timestep_map
    assert all(scale == pytest.approx(1000 - t, rel=1e-9) for t, scale in scales.items())


def test_scaling_after_the_backward_pass_would_lose_it(batch):
    """Why the scale sits inside: float16 gradients of log p are zero from 1 - p_y of about 1e-7 on."""
    x, t, _ = batch
    bias = torch.zeros(CLASSES)
    bias[4] = 20.0
    classifier = Biased(LowPrecision(small_classifier(), torch.float16), bias)
    x_in = x.clone().requires_grad_(True)
    log_p = classifier(x_in, t).log_softmax(dim=-1)[:, 4].sum()
    naive = torch.autograd.grad(log_p, x_in)[0]
    kept = ClassifierGuidance(classifier, EntropyRule(1.0))(x, t, y=torch.full((6,), 4))
    assert kept.flatten(1).norm(dim=1).min() > 1e-3
    assert naive.flatten(1).norm(dim=1).max() < 1e-6


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", ["p_sample_loop", "ddim_sample_loop"])
def test_certain_and_wrong_never_reaches_the_sample(dtype, sampler):
    """s * g grows without bound there; the image is lost, but it stays finite and alone."""
    bias = torch.zeros(CLASSES)
    bias[0] = 400.0
    classifier = LowPrecision(Biased(small_classifier(), bias), dtype)
    diffusion = create_gaussian_diffusion(learn_sigma=True, timestep_respacing="ddim10")
    guidance = ClassifierGuidance(classifier, EntropyRule(6.0))
    y = torch.tensor([0, 1, 2, 0])
    model = LowPrecision(_Unlabelled(small_unet()), dtype)
    sample = getattr(diffusion, sampler)(
        model, (4, 1, 8, 8), cond_fn=guidance, model_kwargs={"y": y}, device="cpu"
    )
    assert sample.isfinite().all()
    assert sample[y == 0].abs().max() < 1e3
    assert guidance.report.summary()["maximum"] > 1e100


class _Unlabelled(nn.Module):
    """An unconditional model under a loop that hands labels to everyone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.model(x, t)


def test_a_sample_with_broken_logits_goes_unguided_alone(batch):
    x, t, y = batch
    classifier = small_classifier()

    def breaks_at_2(x_t, t):
        poison = torch.zeros(len(x_t), 1)
        poison[2] = math.nan
        return classifier(x_t, t) + poison

    guidance = ClassifierGuidance(breaks_at_2, EntropyRule(1.0))
    found = guidance(x, t, y=y)
    expected = ClassifierGuidance(classifier, EntropyRule(1.0))(x, t, y=y)
    assert (found[2] == 0).all()
    keep = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[keep], expected[keep])
    assert guidance.report.summary()["nonfinite"] == 1


def test_cap_bounds_the_gradient_on_the_logits_and_keeps_its_direction(batch):
    x, t, y = batch
    bias = torch.zeros(CLASSES)
    bias[0] = 30.0
    classifier = Biased(small_classifier(), bias)
    free = ClassifierGuidance(classifier, EntropyRule(2.0))
    capped = ClassifierGuidance(classifier, EntropyRule(2.0), cap=5.0)
    g_free, g_capped = free(x, t, y=y).flatten(1).double(), capped(x, t, y=y).flatten(1).double()
    size = EntropyRule(2.0)(classifier(x, t), y, t).abs().sum(1)
    factor = (5.0 * 2.0 * math.log(CLASSES) / size).clamp(max=1.0)
    torch.testing.assert_close(g_capped, g_free * factor[:, None], rtol=1e-5, atol=1e-12)
    assert capped.report.summary()["capped"] == int((factor < 1).sum()) > 0
    assert free.report.summary()["capped"] == 0


def test_guidance_does_not_depend_on_the_batch(batch):
    x, t, y = batch
    guidance = ClassifierGuidance(small_classifier(), EntropyRule(2.0))
    together = guidance(x, t, y=y)
    alone = torch.cat([guidance(x[i : i + 1], t[i : i + 1], y=y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)


def test_missing_labels_and_bad_caps_are_named(batch):
    x, t, _ = batch
    with pytest.raises(ValueError, match="y: missing"):
        ClassifierGuidance(small_classifier(), EntropyRule(1.0))(x, t)
    with pytest.raises(ValueError, match="cap: found 0"):
        ClassifierGuidance(small_classifier(), EntropyRule(1.0), cap=0)


def test_report_gives_the_quantiles():
    scales = np.exp(np.random.default_rng(0).normal(1.0, 2.0, size=20_000))
    report = ScaleReport()
    for chunk in np.split(scales, 10):
        flags = torch.zeros(len(chunk), dtype=torch.bool)
        report.update(torch.from_numpy(chunk), capped=flags, nonfinite=flags, active=~flags)
    summary = report.summary()
    assert summary["median"] == pytest.approx(np.median(scales), rel=0.01)
    assert summary["p999"] == pytest.approx(np.quantile(scales, 0.999), rel=0.02)
    assert summary["maximum"] == pytest.approx(scales.max(), rel=1e-12)
    assert summary["evaluations"] == 20_000
    assert "median" in summary_line(summary) and "20,000 evaluations" in summary_line(summary)


def smooth(seed: int = 7):
    """A classifier in float64 that depends on t, for finite differences."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, m, generator=generator, dtype=torch.float64) / 8 for n, m in ((64, 30), (30, 10)))

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return (1 + t[:, None] / 1000) * 9 * torch.tanh(x.flatten(1).double() @ first) @ second

    return classifier


def finite_difference(log_p, x: Tensor, direction: Tensor, step: float = 1e-6) -> Tensor:
    """Slope [B] of log_p [B] at x along a direction."""
    return (log_p(x + step * direction) - log_p(x - step * direction)) / (2 * step)


ABAR = torch.from_numpy(create_gaussian_diffusion(steps=1000).alphas_cumprod)


def test_guided_noise_against_finite_differences(batch):
    x, t, y = batch
    x, classifier = x.double(), smooth()
    generator = torch.Generator().manual_seed(8)
    eps = torch.randn(6, 2, 8, 8, generator=generator, dtype=torch.float64)  # with a learned variance
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    guided = ClassifierGuidance(classifier, ConstantRule(2.5)).guide_eps(eps, x, t, y, ABAR)

    slope = finite_difference(lambda at: classifier(at, t).log_softmax(-1)[range(6), y], x, direction)
    expected = -2.5 * (1 - ABAR[t]).sqrt() * slope
    found = ((guided - eps)[:, :1] * direction).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(guided[:, 1:], eps[:, 1:]), "the variance stays"


def test_guided_noise_samples_as_cond_fn_does(batch):
    """DDIM with the guidance in the model's eps, against the process's own way."""
    x, _, y = batch
    diffusion = create_gaussian_diffusion(steps=1000, timestep_respacing="ddim10")
    network, guidance = small_unet(), ClassifierGuidance(small_classifier(), EntropyRule(2.0))

    def model(x, t, y):
        return network(x, t)[:, :1]

    def guided(x, t, y):
        return guidance.guide_eps(model(x, t, y), x, t, y, ABAR)

    options = {"shape": x.shape, "noise": x, "clip_denoised": False, "model_kwargs": {"y": y}}
    expected = diffusion.ddim_sample_loop(model, cond_fn=guidance, **options)
    torch.testing.assert_close(diffusion.ddim_sample_loop(guided, **options), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.02, 0.5, torch.tensor([0.1, 0.3, 1.0, 3.0, 20.0, 150.0])])
def test_a_guided_denoiser_against_finite_differences(batch, sigma):
    """D + sigma^2 times the gradient for x of log p_y, where the classifier sees x on the other process's scale."""
    x, _, y = batch
    classifier = smooth()
    sigma_B = torch.as_tensor(sigma).double().expand(6)
    x = x.double() * sigma_B[:, None, None, None]
    generator = torch.Generator().manual_seed(8)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    seen_t = []

    def watched(at, t):
        seen_t.append(t)
        return classifier(at, t)

    guided = ClassifierGuidance(watched, ConstantRule(2.5)).guide_denoised(torch.ones_like(x), x, sigma, y)
    (t,) = seen_t

    def log_p(at: Tensor) -> Tensor:
        scaled = at / (1 + sigma_B**2).sqrt()[:, None, None, None]
        return classifier(scaled, t).log_softmax(-1)[range(6), y]

    slope = finite_difference(log_p, x, direction)
    found = ((guided - 1) * direction).flatten(1).sum(1)
    torch.testing.assert_close(found, 2.5 * sigma_B**2 * slope, rtol=1e-5, atol=1e-8)


def test_the_denoisers_timestep_is_the_nearest():
    seen_t = []

    def classifier(x, t):
        seen_t.append(t)
        return x.flatten(1)[:, :3]

    sigmas = ((1 - ABAR) / ABAR).sqrt()[[0, 17, 400, 999]]
    guidance = ClassifierGuidance(classifier, ConstantRule())
    guidance.guide_denoised(torch.zeros(4, 1, 2, 2), torch.randn(4, 1, 2, 2), sigmas, [0, 1, 2, 0])
    other = torch.linspace(0.9, 0.1, 5)
    guidance.guide_denoised(torch.zeros(1, 1, 2, 2), torch.randn(1, 1, 2, 2), ((1 - 0.49) / 0.49) ** 0.5, 0, other)
    assert [t.tolist() for t in seen_t] == [[0, 17, 400, 999], [2]]


def test_labels_and_timesteps_of_every_form(batch):
    x, _, _ = batch
    guidance = ClassifierGuidance(small_classifier(), EntropyRule(2.0))
    expected = guidance(x, torch.full((6,), 300), y=torch.full((6,), 4))
    for t in (300, [300] * 6, torch.tensor(300), torch.tensor([300]), np.full(6, 300), np.int64(300)):
        for y in (4, [4] * 6, torch.tensor(4), torch.tensor([4], dtype=torch.int32), np.full(6, 4)):
            assert torch.equal(guidance(x, t, y=y), expected)
    with torch.inference_mode():
        assert torch.equal(guidance(x * 1, torch.full((6,), 300) * 1, y=torch.full((6,), 4) * 1), expected)
        assert guidance.report.summary()["evaluations"] == 6 * 32
    for y in (10, -1, [0, 1, 2, 3, 4, 10]):
        with pytest.raises(ValueError, match=r"y: found labels .*(?<!\d)(10|-1)\b.*, the classifier's are 0 to 9"):
            guidance(x, 300, y=y)
    for y in (1.5, [1, 2]):
        with pytest.raises(ValueError, match=r"y: found .*, expected whole numbers of shape \(6,\)"):
            guidance(x, 300, y=y)


def test_what_makes_no_sense_is_refused():
    for arguments, options, says in (
        ((), {"gamma": -1.0}, "gamma: found -1.0, expected a finite number of at least 0"),
        ((), {"gamma": math.nan}, "gamma: found nan"),
    ):
        with pytest.raises(ValueError, match=says):
            EntropyRule(*arguments, **options)
    with pytest.raises(ValueError, match=r"interval: found \(700, 0\), expected \(lowest, highest\)"):
        ClassifierGuidance(small_classifier(), ConstantRule(), interval=(700, 0))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("predict_xstart", [False, True])
def test_what_a_loop_hands_to_its_callback(batch, sampler, predict_xstart):
    """x_t, eps, x_0 before and after guidance, guidance and logits of every step; samples stay bitwise the same."""
    x, _, y = batch
    diffusion = create_gaussian_diffusion(learn_sigma=True, predict_xstart=predict_xstart, timestep_respacing="ddim5")
    model, classifier, steps = _Unlabelled(small_unet()), small_classifier(), []

    def sample(**options) -> Tensor:
        torch.manual_seed(0)
        guidance = ClassifierGuidance(classifier, EntropyRule(0.1))
        options |= {"noise": x, "cond_fn": guidance, "model_kwargs": {"y": y}, "clip_denoised": False}
        return sampling_loop(diffusion, sampler)(model, x.shape, **options)

    images = sample(callback=lambda *step: steps.append(step))
    assert torch.equal(images, sample())
    assert [(step, t) for step, t, _ in steps] == [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)]
    assert torch.equal(steps[0][2].x_t, x)
    for _, t, output in steps:
        original = torch.full((6,), diffusion.timestep_map[t])
        found = model(output.x_t, original, y)
        assert torch.equal(output.model_output, found)
        if sampler != "strang" or t == 4:  # whose network sees x half a kick later
            assert torch.equal(output.logits, classifier(output.x_t, original))
            guidance = ClassifierGuidance(classifier, EntropyRule(0.1))(output.x_t, original, y=y)
            assert torch.equal(output.guidance, guidance)
        noise = (1 - diffusion.alphas_cumprod[t]) ** 0.5
        assert torch.equal(output.unguided_xstart if predict_xstart else output.eps, found[:, :1])
        x_t = diffusion.alphas_cumprod[t] ** 0.5 * output.unguided_xstart + noise * output.eps
        torch.testing.assert_close(x_t, output.x_t, rtol=1e-4, atol=1e-4)
        shift = 0 if sampler == "ddpm" else noise**2 / diffusion.alphas_cumprod[t] ** 0.5 * output.guidance
        torch.testing.assert_close(output.pred_xstart, output.unguided_xstart + shift, rtol=1e-3, atol=1e-3)
    if sampler != "ddpm":
        assert torch.equal(steps[-1][2].pred_xstart, images)
