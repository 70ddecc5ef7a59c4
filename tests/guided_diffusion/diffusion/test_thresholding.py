"""Dynamic thresholding: against diffusers, in its samplers, with guidance; as a flag."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.config.configs import SamplingConfig
from guided_diffusion.diffusion import thresholding
from guided_diffusion.diffusion.solvers import SAMPLERS, sampling_loop
from guided_diffusion.diffusion.thresholding import DynamicThreshold
from guided_diffusion.errors import InputError
from guided_diffusion.respace import SpacedDiffusion
from guided_diffusion.script_util import create_gaussian_diffusion
from tests.support.helpers import read_npz

SCHEDULERS = {"dpmpp2m": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
ABAR = torch.from_numpy(create_gaussian_diffusion().alphas_cumprod).float()
START = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SIGNS = torch.tensor([-1.0, 1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers", reason="the oracle: pip install -c constraints.txt diffusers")


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values())
def test_the_formula_is_diffusers(diffusers, scheduler, quantile):
    theirs = getattr(diffusers, scheduler)(
        thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9
    )
    x_0 = START * torch.tensor([0.1, 0.5, 2.0, 50.0]).reshape(4, 1, 1, 1)
    found = DynamicThreshold(quantile)(x_0)
    torch.testing.assert_close(found, theirs._threshold_sample(x_0), rtol=1e-6, atol=1e-7)
    assert found.abs().max() <= 1 and torch.equal(found[0], x_0[0])
    one_by_one = torch.cat([DynamicThreshold(quantile)(sample) for sample in x_0.split(1)])
    assert torch.equal(one_by_one, found), "each sample by itself"


def test_within_the_range_it_is_the_clamp():
    x_0 = START.clamp(-1, 1)
    x_0[:, 0, 0, 0] = 30.0  # one value of 192: not within the quantile
    assert torch.equal(DynamicThreshold(0.95)(x_0), x_0.clamp(-1, 1))


def test_large_batches_in_parts(monkeypatch):
    expected = DynamicThreshold(0.9)(3 * START)
    monkeypatch.setattr(thresholding, "_LARGEST", 2 * 192 + 1)
    assert torch.equal(DynamicThreshold(0.9)(3 * START), expected)


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1, float("nan")])
def test_what_makes_no_sense_is_refused(quantile):
    with pytest.raises(ValueError, match="quantile: found .*, expected a number above 0, up to 1"):
        DynamicThreshold(quantile)


# --- in the samplers, on pixels from a mixture of two Gaussians at -0.6 and 0.6 -----------------------------


def moments(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """abar, the variance of x_t in a class, and tanh of half the log odds of the classes."""
    abar = ABAR[t].reshape(-1, 1, 1, 1)
    variance = 0.5**2 * abar + 1 - abar
    return abar, variance, torch.tanh(0.6 * abar.sqrt() * x / variance)


def eps(x: Tensor, t: Tensor) -> Tensor:
    abar, variance, mean_sign = moments(x, t)
    return (1 - abar).sqrt() * (x - abar.sqrt() * 0.6 * mean_sign) / variance


def guidance(x: Tensor, t: Tensor) -> Tensor:
    """8 times the gradient of log p(y | x_t) in every pixel."""
    abar, variance, mean_sign = moments(x, t)
    return 8 * (SIGNS[: len(x)] - mean_sign) * 0.6 * abar.sqrt() / variance


def guided_eps(x: Tensor, t: Tensor) -> Tensor:
    return eps(x, t) - (1 - ABAR[t].reshape(-1, 1, 1, 1)).sqrt() * guidance(x, t)


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_guided_runs_are_diffusers(diffusers, sampler):
    """They have the guidance in eps: it is the guided x_0 that is thresholded, once."""
    original = create_gaussian_diffusion()
    lower_at_the_end = {"euler_at_final": True} if sampler == "dpmpp2m" else {}  # UniPC's always is
    scheduler = getattr(diffusers, SCHEDULERS[sampler])(
        trained_betas=original.betas, solver_order=2, final_sigmas_type="sigma_min", thresholding=True,
        dynamic_thresholding_ratio=0.9, sample_max_value=1e9, **lower_at_the_end,
    )  # fmt: skip
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.tolist()
    diffusion = SpacedDiffusion(
        [*timesteps, 0], betas=original.betas, model_mean_type=original.model_mean_type,
        model_var_type=original.model_var_type, loss_type=original.loss_type,
    )  # fmt: skip
    theirs = START
    for t in timesteps:
        theirs = scheduler.step(guided_eps(theirs, torch.full((4,), t)), t, theirs).prev_sample
    steps = []
    sampling_loop(diffusion, sampler)(
        eps, START.shape, noise=START, cond_fn=guidance, denoised_fn=DynamicThreshold(0.9),
        callback=lambda step, t, output: steps.append(output),
    )  # fmt: skip
    torch.testing.assert_close(steps[-1].x_t, theirs, rtol=0, atol=1e-4)
    assert all(step.pred_xstart.abs().max() <= 1 for step in steps)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp2m", "unipc"])
def test_fewer_saturated_values_at_scale_eight(sampler):
    def saturated(**options) -> float:
        loop = sampling_loop(create_gaussian_diffusion(timestep_respacing="10"), sampler)
        return float((loop(eps, START.shape, noise=START, cond_fn=guidance, **options).abs() >= 0.999).float().mean())

    assert saturated(denoised_fn=DynamicThreshold(0.9)) < 0.2 < 0.3 < saturated()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_in_every_sampler_without_guidance_it_replaces_the_clamp(sampler):
    def sample(**options) -> Tensor:
        torch.manual_seed(0)
        loop = sampling_loop(create_gaussian_diffusion(timestep_respacing="4"), sampler)
        return loop(lambda x, t: 2 * eps(x, t), START.shape, noise=START, **options)

    found = sample(denoised_fn=DynamicThreshold(0.9))
    assert found.abs().max() <= 1 + 1e-6 and not torch.equal(found, sample())


def test_a_guidance_that_wants_x_0_is_told_a_thresholded_one():
    told = []

    class Wants:
        wants_x0 = True

        def __call__(self, x: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
            told.append(x_0)
            return torch.zeros_like(x)

    loop = sampling_loop(create_gaussian_diffusion(timestep_respacing="4"), "dpmpp2m")
    loop(lambda x, t: 2 * eps(x, t), START.shape, noise=START, cond_fn=Wants(), denoised_fn=DynamicThreshold(0.9))
    assert len(told) == 4 and all(x_0.abs().max() <= 1 for x_0 in told)


class TestFlag:
    @pytest.mark.slow
    def test_a_run(self, run, tmp_path, checkpoints):
        flags = {"model_path": checkpoints["model"], "num_samples": 2, "timestep_respacing": "3", "sampler": "unipc"}
        images = {}
        for quantile in ("0", "0.5"):
            run("image_sample", flags | {"dynamic_threshold": quantile, "log_dir": quantile})
            images[quantile] = read_npz(tmp_path / quantile / "samples_2x8x8x3.npz")["arr_0"]
            assert json.loads((tmp_path / quantile / "run.json").read_text())["dynamic_threshold"] == float(quantile)
        run("image_sample", flags | {"log_dir": "without"})
        assert np.array_equal(images["0"], read_npz(tmp_path / "without" / "samples_2x8x8x3.npz")["arr_0"])
        assert not np.array_equal(images["0"], images["0.5"])

    @pytest.mark.parametrize(
        ("flags", "says"),
        [
            ({"dynamic_threshold": 0.2}, "found 0.2, expected 0 (off) or 0.5 to 1"),
            ({"dynamic_threshold": 1.0, "clip_denoised": False}, "found with --clip_denoised False, whose clamp"),
        ],
    )
    def test_what_is_no_threshold(self, flags, says):
        with pytest.raises(InputError) as found:
            SamplingConfig(**flags)
        assert str(found.value).startswith(f"--dynamic_threshold: {says}")

    @pytest.mark.parametrize("value", ["1.5", "-0.1", "nan"])
    def test_out_of_range(self, run, value):
        (line,) = run("image_sample", {"dynamic_threshold": value}, fails=True).error_lines
        assert "--dynamic_threshold: found" in line and "expected 0.0 to 1.0" in line
