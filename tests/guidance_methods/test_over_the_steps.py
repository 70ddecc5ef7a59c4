"""Stabilizers against torch.optim and closed forms; skipped steps; what is remembered, and when it is forgotten."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ed_dpm_patches import ClassifierGuidance, ConstantRule, EntropyRule
from guidance_methods import Adam, Ema, GuidanceEvery, ScoreGuidance, Stabilized
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.networks import small_classifier

SHAPE = (3, 1, 8, 8)
Y = torch.tensor([1, 5, 7])


def gradients(steps: int = 12, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """At least 0.01 in magnitude."""
    g = torch.randn(steps, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [scale * (step + 0.01 * step.sign()).to(dtype) for step in g]


def run(stabilizer, steps: list[Tensor]) -> list[Tensor]:
    return [stabilizer(g, torch.full((3,), 900 - 10 * n)) for n, g in enumerate(steps)]


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_adam_is_torchs(betas):
    parameter = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=betas)
    steps = gradients(dtype=torch.float64)
    for g, found in zip(steps, run(Adam(*betas), steps), strict=True):
        before, parameter.grad = parameter.detach().clone(), -g
        optimizer.step()
        torch.testing.assert_close(found, parameter.detach() - before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("constant", [7.0, 1e4])
def test_adam_cancels_a_constant_scale(constant):
    for plain, scaled in zip(run(Adam(), gradients()), run(Adam(), gradients(scale=constant)), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-5)


def test_ema_is_the_weighted_mean():
    steps = gradients(dtype=torch.float64)
    found = run(Ema(0.8), steps)
    for n in range(len(steps)):
        weights = torch.tensor([0.8 ** (n - k) for k in range(n + 1)], dtype=torch.float64)
        mean = (weights[:, None, None, None, None] * torch.stack(steps[: n + 1])).sum(0) / weights.sum()
        torch.testing.assert_close(found[n], mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [Adam, Ema])
def test_a_sample_is_remembered_by_itself(make):
    """Samples in a batch, alone, and after another batch: bitwise the same; one that begins anew forgets alone."""
    steps = gradients()
    stabilizer = make()
    first, again = run(stabilizer, steps), run(stabilizer, steps)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alone = make()
    for n, g in enumerate(steps):
        assert torch.equal(alone(g[:1], torch.tensor([900 - 10 * n])), first[n][:1])
    stabilizer(steps[0], torch.tensor([700, 500, 100]))
    found = stabilizer(steps[1], torch.tensor([690, 999, 90]))
    fresh = make()(steps[1], torch.tensor([999] * 3))
    assert torch.equal(found[1], fresh[1]) and not torch.equal(found[0], fresh[0])
    stabilizer.state.reset()
    assert torch.equal(stabilizer(steps[1], torch.tensor([1] * 3)), fresh)


@pytest.mark.parametrize("make", [Adam, Ema])
def test_a_second_call_at_the_same_t_is_the_same_step(make):
    steps, once, twice = gradients(), make(), make()
    for n, g in enumerate(steps):
        t = torch.full((3,), 900 - 10 * n)
        twice(steps[-1 - n], t)
        assert torch.equal(twice(g, t), once(g, t))


def test_a_score_outside_its_interval_and_against_its_gradient():
    def build(scale):
        score = ScoreGuidance(lambda x, t: x.flatten(1).sum(dim=1), scale, interval=(300, 600))
        return Stabilized(score, Adam())

    forwards, backwards, x = build(2.0), build(-2.0), torch.zeros(SHAPE)
    for t in (800, 500, 400, 200):
        expected = torch.full(SHAPE, 2.0 if 300 <= t <= 600 else 0.0)
        torch.testing.assert_close(forwards(x, torch.full((3,), t)), expected)
        torch.testing.assert_close(backwards(x, torch.full((3,), t)), -expected)


@pytest.mark.parametrize("make", [Adam, Ema])
def test_inactive_steps_leave_no_trace(make):
    steps = gradients()
    stabilizer, plain = make(), make()
    stabilizer(steps[0], torch.full((3,), 90))
    stabilizer(steps[5], torch.full((3,), 80), torch.tensor([False, True, False]))
    found = stabilizer(steps[1], torch.full((3,), 70))
    plain(steps[0], torch.full((3,), 90))
    expected = plain(steps[1], torch.full((3,), 70))
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and not torch.equal(found[1], expected[1])


def test_the_scale_comes_after_it():
    """EDS's factor on Adam's step, which the gradient of log p alone determines."""
    classifier = small_classifier()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    scaled, plain = ClassifierGuidance(classifier, EntropyRule(3.0)), ClassifierGuidance(classifier, ConstantRule())
    guidance, adam = Stabilized(scaled, Adam()), Adam()
    for t in (800, 400, 100):
        t_B = torch.full((3,), t)
        expected = adam(plain(x, t_B, y=Y), t_B)
        found = guidance(x, t_B, y=Y)
        assert scaled.scale.min() >= 3 and guidance.logits is scaled.logits
        torch.testing.assert_close(found, expected * scaled.scale[:, None, None, None].float(), rtol=1e-4, atol=1e-5)


def test_any_gradient_has_a_scale_of_its_own():
    for inner in (lambda x, t: 4 * x, GuidanceEvery(lambda x, t: 4 * x, 1)):
        found = Stabilized(inner, Adam())(torch.ones(SHAPE), torch.full((3,), 5))
        torch.testing.assert_close(found, torch.ones(SHAPE))


def test_outside_the_interval_there_is_nothing():
    inside = ClassifierGuidance(small_classifier(), ConstantRule(2.0), interval=(100, 300))
    guidance = Stabilized(inside, Adam())
    x = torch.randn(SHAPE)
    assert not guidance(x, torch.full((3,), 500), y=Y).any()
    found = guidance(x, torch.tensor([301, 300, 200]), y=Y)
    assert not found[0].any() and found[1:].flatten(1).any(dim=1).all() and found.isfinite().all()


def test_huge_scales_stay_finite():
    def sure(x, t):
        return x.flatten(1)[:, :10] + 400 * torch.eye(10)[0]

    guidance = Stabilized(ClassifierGuidance(sure, EntropyRule(6.0)), Adam())
    for t in (900, 800):
        assert guidance(torch.randn(SHAPE), torch.full((3,), t), y=Y).isfinite().all()


class Counted:
    def __init__(self):
        self.at = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.at.append(int(t[0]))
        return x * t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("every", "asked"), [(1, [9, 8, 7, 6, 5]), (2, [9, 7, 5]), (4, [9, 5]), (9, [9])])
@pytest.mark.parametrize("skipped", ["reuse", "none"])
def test_every_kth_step(every, asked, skipped):
    inner = Counted()
    guidance, x = GuidanceEvery(inner, every, skipped), torch.ones(SHAPE)
    for _ in range(2):  # batches
        inner.at.clear()
        for t in (9, 8, 7, 6, 5):
            found = float(guidance(x, torch.full((3,), t), y=Y).mean())
            assert found == (inner.at[-1] if skipped == "reuse" or t in asked else 0)
        assert inner.at == asked


def test_skipped_steps_have_no_logits():
    guidance = GuidanceEvery(ClassifierGuidance(small_classifier(), ConstantRule()), 2)
    seen = []
    for t in (9, 8, 7):
        guidance(torch.randn(SHAPE), torch.full((3,), t), y=Y)
        seen.append(guidance.logits is not None)
    assert seen == [True, False, True]
    guidance.reset()
    guidance(torch.randn(SHAPE), torch.full((3,), 7), y=Y)
    assert guidance.logits is not None


@pytest.mark.parametrize("sampler", ["p_sample_loop", "ddim_sample_loop"])
def test_in_a_sampler_a_batch_is_the_same_after_another(sampler):
    diffusion = create_gaussian_diffusion(timestep_respacing="ddim10")
    inner = ClassifierGuidance(small_classifier(), EntropyRule(0.01))
    guidance = GuidanceEvery(Stabilized(inner, Adam()), 3)
    images = []
    for _ in range(2):
        torch.manual_seed(0)
        options = {"cond_fn": guidance, "model_kwargs": {"y": Y}, "device": "cpu"}
        images.append(getattr(diffusion, sampler)(lambda x, t, y: 0.1 * x, SHAPE, **options))
    assert torch.equal(*images) and inner.report.summary()["evaluations"] == 2 * 4 * 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adam(1.0), "beta1: found 1.0"), (lambda: Ema(-0.1), "beta: found -0.1"),
        (lambda: GuidanceEvery(Counted(), 0), "every: found 0"),
        (lambda: GuidanceEvery(Counted(), 2, "zero"), "skipped: found 'zero', expected reuse or none"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
