"""Heun's method: against diffusers' scheduler and closed forms; what its callbacks see. k-diffusion's: test_hosts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ed_dpm_patches import ClassifierGuidance, ConstantRule
from ed_dpm_patches.trace import Trace
from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.heun import Heun
from guided_diffusion.diffusion.nonfinite import NonfiniteDetector
from guided_diffusion.errors import InputError
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType
from guided_diffusion.script_util import create_gaussian_diffusion

MU, STD = 0.3, 0.5  # of Gaussian data
START = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def wavy(x: Tensor, t: Tensor, **kwargs) -> Tensor:
    """A network that is not linear in x and depends on t; sample by sample the same in any batch."""
    return 0.8 * torch.tanh(1.3 * x + t.reshape(-1, 1, 1, 1) / 500 - 0.5)


def results(diffusion: GaussianDiffusion, model, start: Tensor, **options) -> list[dict[str, Tensor]]:
    options = {"clip_denoised": False, "noise": start} | options
    return list(samplers.sample_progressively(diffusion, Heun(diffusion), model, start.shape, **options))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_against_diffusers(steps, schedule):
    diffusers = pytest.importorskip("diffusers", reason="the oracle: pip install -c constraints.txt diffusers")
    diffusion = create_gaussian_diffusion(noise_schedule=schedule, timestep_respacing=str(steps))
    original = create_gaussian_diffusion(noise_schedule=schedule)
    scheduler = diffusers.HeunDiscreteScheduler(trained_betas=original.betas, prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    # Their points are between whole timesteps; each but the first is looked at twice.
    sigmas = torch.from_numpy(np.sqrt(1 / diffusion.alphas_cumprod - 1)[::-1].copy())
    timesteps = torch.tensor(diffusion.timestep_map[::-1])
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2), torch.zeros(1)])
    scheduler.timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
    theirs = START * float((1 + sigmas[0] ** 2) ** 0.5)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(theirs, t)
        theirs = scheduler.step(wavy(seen, t.expand(3)), t, theirs).prev_sample
    ours = results(diffusion, wavy, START)[-1]["sample"]
    assert len(scheduler.timesteps) == 2 * steps - 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def error_at_the_last_point(steps: int) -> float:
    """Before the final step, which is of first order; points at equal distances of lambda from -3 to 3."""
    abar = 1 / (1 + np.exp(-2 * np.linspace(3, -3, steps + 1)))
    diffusion = GaussianDiffusion(
        betas=1 - abar / np.append(1.0, abar[:-1]), model_mean_type=ModelMeanType.START_X,
        model_var_type=ModelVarType.FIXED_SMALL, loss_type=LossType.MSE,
    )  # fmt: skip

    def mean_of_x_start(x: Tensor, t: Tensor) -> Tensor:
        at = torch.from_numpy(abar)[t].reshape(-1, 1)
        return MU + at.sqrt() * STD**2 / (at * STD**2 + 1 - at) * (x - at.sqrt() * MU)

    def path(at: float) -> Tensor:
        z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 5)
        return MU * at**0.5 + (at * STD**2 + 1 - at) ** 0.5 * z

    found = results(diffusion, mean_of_x_start, path(abar[-1]))
    return float((found[-2]["sample"] - path(abar[0])).abs().max())


def test_it_converges_with_order_two():
    coarse, fine = error_at_the_last_point(80), error_at_the_last_point(160)
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.1)


def linear_classifier(x: Tensor, t: Tensor) -> Tensor:
    return x.flatten(1) @ torch.linspace(-1, 1, 48, dtype=x.dtype).reshape(16, 3)


def test_callbacks_see_the_first_evaluation_of_each_step():
    diffusion = create_gaussian_diffusion(timestep_respacing="5")
    trace, calls, steps = Trace(diffusion, samples=3), [], []

    def model(x, t, **kwargs):
        calls.append((x, wavy(x, t)))
        return calls[-1][1]

    guidance = ClassifierGuidance(linear_classifier, ConstantRule(0.5), observer=trace.observe)
    callback = samplers.together([trace.step], lambda: None)

    def noting(step: int, t: int, output: samplers.StepOutput) -> None:
        callback(step, t, output)
        steps.append(output)

    options = {"cond_fn": guidance, "model_kwargs": {"y": torch.tensor([0, 1, 2])}, "callback": noting}
    results(diffusion, model, START.float(), **options)
    assert len(calls) == 9
    for n, output in enumerate(steps):
        x, returned = calls[2 * n]
        assert torch.equal(output.x_t, x) and torch.equal(output.model_output, returned)
        assert [torch.equal(further, calls[2 * n + 1][1]) for further in output.further_outputs] == [True] * (n < 4)
        assert torch.equal(output.logits, linear_classifier(x, None))
    recorded = trace.take()
    assert recorded["t"][0].tolist() == diffusion.timestep_map[::-1]
    assert np.array_equal(recorded["map_guidance"], torch.stack([s.guidance for s in steps], dim=1).numpy())
    assert np.array_equal(recorded["map_x_t"], torch.stack([s.x_t for s in steps], dim=1).numpy())


@pytest.mark.parametrize("place", ["model output", "classifier logits"])
def test_inf_in_a_second_evaluation_is_found_in_its_step(place):
    """The clamp of x_0 would hide it from the steps after."""
    diffusion, calls = create_gaussian_diffusion(timestep_respacing="5"), []

    def poisoned(name: str, values: Tensor) -> Tensor:
        calls.extend([name] * (name == place))
        if name == place and len(calls) == 4:
            values = values.clone()
            values[1] = math.inf
        return values

    detector = NonfiniteDetector()
    guidance = ClassifierGuidance(lambda x, t: poisoned("classifier logits", linear_classifier(x, t)), ConstantRule())
    options = {"cond_fn": guidance, "model_kwargs": {"y": torch.tensor([0, 1, 2])}, "callback": detector.step}
    found = results(
        diffusion, lambda x, t, y: poisoned("model output", wavy(x, t)), START.float(), clip_denoised=True, **options
    )
    with pytest.raises(InputError, match=rf"sample 1: found (inf|nan) in the {place} at step 2 "):
        detector.take(found[-1]["sample"], range(3))
