"""Denoising likelihood score matching: against a mixture with exact networks, and against finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experiments.mixture.distribution import Mixture, make_mixture
from experiments.mixture.networks import exact_noise, sharpened
from guidance_methods.dlsm import DenoisingLikelihood, denoising_terms, ideal_scale
from guided_diffusion.models import layers
from guided_diffusion.models.attention import fuse_attention
from guided_diffusion.models.layers import GroupNorm32, to_fast_layout
from guided_diffusion.models.mixed_precision import LowPrecision
from guided_diffusion.models.unet import EncoderUNetModel
from guided_diffusion.script_util import create_gaussian_diffusion
from guided_diffusion.training.classifier_loop import Noised

PROCESS = create_gaussian_diffusion(steps=100, noise_schedule="cosine")
MIXTURE = make_mixture("circle", 3, 2, 4, 1.0, 0.4, 0.2, PROCESS.alphas_cumprod)
COUNT = 4000


@pytest.fixture(scope="module")
def batch() -> Noised:
    """Draws from the mixture, float64."""
    generator = torch.Generator().manual_seed(0)
    y, t = (torch.randint(high, (COUNT,), generator=generator) for high in (3, 100))
    x_0 = MIXTURE.draw(y, generator)
    noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    abar = MIXTURE.abar_T[t][:, None]
    return Noised(abar.sqrt() * x_0 + (1 - abar).sqrt() * noise, y, t, noise)


def evaluate(network, batch: Noised, **options) -> dict[str, Tensor]:
    denoising = DenoisingLikelihood(exact_noise(MIXTURE), PROCESS, **options)
    with torch.no_grad():
        return denoising(network, batch)[1]


def conditional_noise(batch: Noised) -> Tensor:
    """E[eps | x_t, y] of the mixture, in closed form: the noise predictor of one class's components."""
    found = torch.empty_like(batch.x_t)
    for label in range(MIXTURE.num_classes):
        own = MIXTURE.class_J == label
        one = Mixture(MIXTURE.means_JD[own], torch.zeros(int(own.sum()), dtype=torch.long), MIXTURE.deviation,
                      MIXTURE.abar_T)  # fmt: skip
        rows = batch.y == label
        found[rows] = exact_noise(one)(batch.x_t[rows], batch.t[rows])
    return found


def test_the_loss_in_closed_form(batch):
    terms = evaluate(sharpened(MIXTURE, 1.0), batch, weight=3.0)
    expected = (batch.noise - conditional_noise(batch)).square().mean(dim=1)
    unguided = (batch.noise - exact_noise(MIXTURE)(batch.x_t, batch.t)).square().mean(dim=1)
    torch.testing.assert_close(terms["dlsm"], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms["loss"], 3 * expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms["dlsm_gain"], unguided - expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("other", ["sharper", "flatter", "of wider components", "uniform"])
def test_the_true_gradient_is_best(batch, other):
    wide = replace(MIXTURE, deviation=0.4)
    networks = {
        "sharper": sharpened(MIXTURE, 2.0), "flatter": sharpened(MIXTURE, 0.5), "uniform": sharpened(MIXTURE, 1e-9),
        "of wider components": sharpened(wide, 1.0),
    }  # fmt: skip
    more = evaluate(networks[other], batch)["dlsm"] - evaluate(sharpened(MIXTURE, 1.0), batch)["dlsm"]
    assert more.mean() > 4 * more.std() / COUNT**0.5


def test_the_ideal_scale(batch):
    """1 for the exact gradient, within what chance allows; 1 / c for c times a gradient."""
    terms = evaluate(sharpened(MIXTURE, 1.0), batch)
    size = terms["dlsm_size"]
    deviation = ((terms["dlsm_gain"] - size) / 2).std() / COUNT**0.5 / size.mean()
    assert 0.01 < deviation < 0.1 and abs(ideal_scale(terms) - 1) < 3 * deviation
    assert "loss" not in terms, "the weight is 0"

    generator = torch.Generator().manual_seed(1)
    residual, guidance = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    expected = -(residual * guidance).sum() / guidance.square().sum()
    for factor in (1.0, 0.1, -4.0):
        found = ideal_scale(denoising_terms(residual, factor * guidance))
        assert found == pytest.approx(float(expected) / factor, rel=1e-9)
    assert math.isnan(ideal_scale(denoising_terms(residual, 0 * guidance)))


def network_of(pool: str = "attention") -> EncoderUNetModel:
    torch.manual_seed(0)
    network = EncoderUNetModel(
        8, 1, 32, 3, 1, (2,), channel_mult=(1, 2), num_head_channels=32, use_scale_shift_norm=True,
        resblock_updown=True, pool=pool,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():  # the zero-initialised layers too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return fuse_attention(network).train()


def images(dtype: torch.dtype) -> Noised:
    generator = torch.Generator().manual_seed(2)
    x_t, noise = torch.randn(2, 4, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return Noised(x_t, torch.tensor([0, 1, 2, 1]), torch.tensor([3, 30, 60, 95]), noise)


def loss_of(network: nn.Module, batch: Noised) -> Tensor:
    denoising = DenoisingLikelihood(lambda x, t: 0.5 * x, PROCESS, weight=10.0)
    return denoising(network, batch)[1]["loss"].mean()


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
def test_the_gradient_against_finite_differences(monkeypatch, pool):
    """The whole classifier in float64, with the fused attention of training."""
    monkeypatch.setattr(GroupNorm32, "forward", nn.GroupNorm.forward)  # not in float32
    network, batch = network_of(pool).double(), images(torch.float64)
    network.dtype = torch.float64
    network.time_embed.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss_of(network, batch), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        losses = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(step * direction)
            losses.append(loss_of(network, batch).item())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(1e-6 * direction)
        assert abs(along) > 1e-3
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(along, rel=1e-5)


def test_the_gradient_in_channels_last(monkeypatch):
    """On maps where group normalisation is our own, against PyTorch's."""
    torch.manual_seed(0)
    network = EncoderUNetModel(32, 1, 64, 3, 1, (), channel_mult=(1, 1), num_head_channels=64, pool="attention")
    batch = Noised(*(values[:2] for values in images(torch.float32)))
    batch = batch._replace(x_t=batch.x_t.repeat(1, 1, 4, 4), noise=batch.noise.repeat(1, 1, 4, 4))
    network, parameters = to_fast_layout(network).train(), list(network.parameters())
    assert layers.group_norm_is_faster(torch.empty(2, 64, 32, 32).contiguous(memory_format=torch.channels_last))

    def gradient() -> Tensor:
        gradients = torch.autograd.grad(loss_of(network, batch), parameters, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    found = gradient()
    monkeypatch.setattr(layers, "group_norm_is_faster", lambda x: False)
    expected = gradient()
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    network, batch = network_of(), images(torch.float32)
    found = {}
    for kind in (None, dtype):
        loss = 2.0**12 * loss_of(LowPrecision(network, kind), batch)  # the loss scale of training
        gradients = torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)
        found[kind] = torch.cat([gradient.flatten() for gradient in gradients])
    assert (found[dtype] - found[None]).norm() < 0.02 * found[None].norm() * (8 if dtype is torch.bfloat16 else 1)


def test_a_model_of_x_0_with_a_variance(batch):
    process = create_gaussian_diffusion(steps=100, noise_schedule="cosine", predict_xstart=True)
    both = DenoisingLikelihood(lambda x, t: torch.cat([MIXTURE.denoise(x, t), 9 * x], dim=1), process)
    found = both.predict_noise(batch.x_t, batch.t)
    torch.testing.assert_close(found, exact_noise(MIXTURE)(batch.x_t, batch.t), rtol=1e-3, atol=1e-4)


def test_without_a_weight_training_is_left_alone():
    network, batch = network_of(), images(torch.float32)

    def forbidden(x, t):
        raise AssertionError("the diffusion model is not asked")

    logits, more = DenoisingLikelihood(forbidden, PROCESS)(network, batch)
    assert more == {} and torch.equal(logits, network(batch.x_t, batch.t))
