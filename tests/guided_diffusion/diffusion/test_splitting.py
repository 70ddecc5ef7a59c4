"""Strang splitting: against its formulas written out, DPM-Solver++(2M) and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.solvers import sampling_loop
from guided_diffusion.diffusion.splitting import Strang
from guided_diffusion.gaussian_diffusion import GaussianDiffusion, LossType, ModelMeanType, ModelVarType

MU, STD = 0.3, 0.5  # of Gaussian data
Z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 5)


class Exact(GaussianDiffusion):
    """A process with points at equal distances of lambda from -3 to 3, and its tables in float64."""

    def __init__(self, steps: int):
        abar = 1 / (1 + np.exp(-2 * np.linspace(3, -3, steps + 1)))
        super().__init__(
            betas=1 - abar / np.append(1.0, abar[:-1]), model_mean_type=ModelMeanType.START_X,
            model_var_type=ModelVarType.FIXED_SMALL, loss_type=LossType.MSE,
        )  # fmt: skip

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(getattr(self, name)))[t].reshape(-1, *[1] * (like.dim() - 1))


def gaussian_score(x: Tensor, abar: Tensor, mu: float, std: float) -> Tensor:
    return -(x - abar.sqrt() * mu) / (abar * std**2 + 1 - abar)


class GuidedGaussian:
    """Data from N(MU, STD^2) with a class whose own data are from N(mu, std^2): everything is known.

    The classifier's gradient is the difference of the scores. It does not depend on x where std is STD.
    """

    def __init__(self, diffusion: Exact, mu: float, std: float):
        self.diffusion, self.mu, self.std = diffusion, mu, std

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.diffusion.at("alphas_cumprod", t, x)
        return (x + (1 - abar) * gaussian_score(x, abar, MU, STD)) / abar.sqrt()

    def guidance(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.diffusion.at("alphas_cumprod", t, x)
        return gaussian_score(x, abar, self.mu, self.std) - gaussian_score(x, abar, MU, STD)

    def path(self, t: int) -> Tensor:
        """The guided path of quantile Z."""
        abar = self.diffusion.alphas_cumprod[t]
        return self.mu * abar**0.5 + (abar * self.std**2 + 1 - abar) ** 0.5 * Z


def run(diffusion: Exact, model, start: Tensor, **options) -> list[dict[str, Tensor]]:
    options = {"noise": start, "clip_denoised": False} | options
    return list(samplers.sample_progressively(diffusion, Strang(diffusion), model, start.shape, **options))


def error(steps: int, mu: float, std: float) -> float:
    """Before the two last steps, whose order is lower, at the end of the kick."""
    diffusion = Exact(steps)
    known = GuidedGaussian(diffusion, mu, std)
    x = run(diffusion, known.model, known.path(steps), cond_fn=known.guidance)[-3]["sample"]
    abar = diffusion.alphas_cumprod
    ratio = np.sqrt(1 / abar - 1)
    kick = np.sqrt(abar[1] * (1 - abar[1])) * (ratio[2] - ratio[1]) / 2
    return float((x + kick * known.guidance(x, torch.tensor([1])) - known.path(1)).abs().max())


@pytest.mark.parametrize(("std", "order"), [(0.5, 2), (0.25, 1)])
def test_order_of_convergence(std, order):
    """To the exact guided path: second where the guidance is the same at all x, else first."""
    coarse, fine = error(160, 0.5, std), error(320, 0.5, std)
    assert fine < 0.01 and np.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_the_formulas_written_out():
    """In z = x / alpha and r = sigma / alpha, the two parts by themselves."""
    steps = 7
    diffusion = Exact(steps - 1)
    known = GuidedGaussian(diffusion, 0.5, 0.25)
    abar = diffusion.alphas_cumprod
    alpha, r = np.sqrt(abar), np.append(0.0, np.sqrt(1 / abar - 1))  # r[t + 1] at t, r[0] at the image
    z, past, middle = known.path(steps - 1) / alpha[-1], None, r[-1]
    for t in range(steps - 1, -1, -1):
        here, there = r[t + 1], r[t]
        force = -np.sqrt(1 - abar[t]) * known.guidance(alpha[t] * z, torch.tensor([t]))  # B
        z = z + (here - middle) * force
        m = known.model(alpha[t] * z, torch.tensor([t]))
        if t == 0:
            z = m - here * force
            break
        middle = (here + there) / 2
        z = z + (middle - here) * force
        # dz/dr = (z - x_0) / r, x_0 linear in log r through the last two.
        h, before = np.log(here / there), np.log(r[t + 2] / here) if t < steps - 1 else None
        slope = (m - past) / before if past is not None and t > 1 else 0 * m
        x_0 = m + slope * h / 2
        z, past = x_0 + there / here * (z - x_0), m
    found = run(diffusion, known.model, known.path(steps - 1), cond_fn=known.guidance)[-1]
    torch.testing.assert_close(found["sample"], z, rtol=1e-9, atol=1e-10)
    assert torch.equal(found["sample"], found["pred_xstart"])


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_without_guidance_it_is_dpm_solver(steps):
    diffusion = Exact(steps)
    model = GuidedGaussian(diffusion, 0.5, 0.25).model
    options = {"noise": Z, "clip_denoised": False}
    ours, theirs = (sampling_loop(diffusion, name)(model, Z.shape, **options) for name in ("strang", "dpmpp2m"))
    assert torch.equal(ours, theirs)
    zeros = sampling_loop(diffusion, "strang")(model, Z.shape, cond_fn=lambda x, t: torch.zeros_like(x), **options)
    assert torch.equal(zeros, theirs)


def test_one_step_is_ddims():
    diffusion = Exact(0)
    known = GuidedGaussian(diffusion, 0.5, 0.25)
    options = {"noise": Z, "clip_denoised": False, "cond_fn": known.guidance}
    ours, ddim = (sampling_loop(diffusion, name)(known.model, Z.shape, **options) for name in ("strang", "ddim"))
    torch.testing.assert_close(ours, ddim)


def test_a_guidance_that_wants_x_0_gets_it_where_it_looks():
    diffusion, calls = Exact(5), []
    known = GuidedGaussian(diffusion, 0.5, 0.25)

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return known.model(x, t)

    class AtDenoised:
        wants_x0 = True

        def __call__(self, x: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
            return 0.3 - x_0

    told = run(diffusion, counted, Z, cond_fn=AtDenoised())
    assert len(calls) == 12
    by_itself = run(diffusion, counted, Z, cond_fn=lambda x, t: 0.3 - known.model(x, t))
    assert torch.equal(told[-1]["sample"], by_itself[-1]["sample"]) and len(calls) == 18
