"""Each method of the study: what it samples, and where its guidance looks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ed_dpm_patches import ClassifierGuidance, ConstantRule
from experiments.mixture.methods import Method
from experiments.mixture.study import Cell, Laboratory, read_spec
from guided_diffusion.config.create import create_gaussian_diffusion

SPEC = read_spec() | {"samples": 40, "training_steps": 2}
CELL = Cell("plane", "exact", "exact", "constant", "ddim", 2, 0.0)


@pytest.fixture(scope="module")
def laboratory():
    return Laboratory(SPEC)


@pytest.mark.parametrize("denoiser", ["exact", "blurred0.1", "learned"])
@pytest.mark.parametrize("method", SPEC["methods"])
def test_every_method_samples(laboratory, method, denoiser):
    cell = replace(CELL, method=method, denoiser=denoiser)
    found = laboratory.run(cell, 0.01, seed=0)
    assert all(torch.tensor(value).isfinite() for value in found.values())
    assert found == laboratory.run(cell, 0.01, seed=0) != laboratory.run(cell, 0.01, seed=1)
    other = laboratory.run(cell, 0.5, seed=0)
    assert found["within"] != other["within"]


@pytest.mark.parametrize("classifier", ["exact", "sharp4", "soft2", "ect0.2", "learned", "learned-sharp4"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp2m"])
def test_every_classifier_and_sampler_samples(laboratory, classifier, sampler):
    found = laboratory.run(replace(CELL, classifier=classifier, sampler=sampler, clip=1.0), 0.5, seed=0)
    assert all(torch.tensor(value).isfinite() for value in found.values())


def test_names_that_are_not_known(laboratory):
    with pytest.raises(ValueError, match="classifier: found dull"):
        laboratory.classifier("plane", "dull")
    with pytest.raises(ValueError, match="denoiser: found loud2"):
        laboratory.denoiser("plane", "loud2")


def test_the_pair_at_1_is_the_conditional_model(laboratory):
    """Plain guidance by the exact classifier leads to the same samples: one score, in two ways."""
    pair = laboratory.run(replace(CELL, classifier="none", method="cfg", steps=10), 1.0, seed=0)
    guided = laboratory.run(replace(CELL, steps=10), 1.0, seed=0)
    assert pair == pytest.approx(guided, abs=1e-4)


def test_places(laboratory):
    """At x_0 the classifier looks with t = 0; through the denoiser it is the chain rule."""
    mixture, classifier = laboratory.mixture("plane"), laboratory.classifier("plane", "exact")
    denoiser = laboratory.denoiser("plane", "exact")
    diffusion = create_gaussian_diffusion(timestep_respacing="ddim10")
    y, t = torch.arange(10), torch.full((10,), 600)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def guidance(place, x, **kwargs):
        method = Method("", place=place)
        return method.guidance(0.5, classifier, denoiser, diffusion)(x, t, y=y, **kwargs)

    t = torch.tensor(diffusion.timestep_map)[torch.full((10,), 6)]
    x_0 = mixture.denoise(x, t)
    plain = ClassifierGuidance(lambda x, _: classifier(x, torch.zeros_like(t)), ConstantRule(0.5))
    torch.testing.assert_close(guidance("denoised", x, x_0=x_0), plain(x_0, t, y=y))
    leaf = x.clone().requires_grad_()
    log_p = classifier(mixture.denoise(leaf, t), torch.zeros_like(t)).log_softmax(dim=1)[range(10), y]
    (expected,) = torch.autograd.grad(0.5 * log_p.sum(), leaf)
    torch.testing.assert_close(guidance("through", x), expected, rtol=1e-5, atol=1e-6)
