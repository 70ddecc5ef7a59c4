"""Samplers for few steps: DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095), UniPC-2 (Zhao et al. 2023, 2302.04867).

Both follow the same deterministic path as DDIM, and like it evaluate network and guidance once a step. What they
add is memory: x_0 as predicted (and guided) at earlier points gives its slope over lambda = log(alpha / sigma), the
half log of the signal-to-noise ratio, with alpha^2 = abar and sigma^2 = 1 - abar. With h = lambda' - lambda the way
from x at lambda to x' at lambda' is

    x' = sigma'/sigma x + alpha' * integral over u in [0, 1] of h exp(h (u - 1)) x_0(lambda + u h)   (Prop. 4.1)

The points are those of the (respaced) process from t = T - 1 to 0, then the clean image. Three steps are of first
order, as DDIM's are. The first has no past. The last has no slope to follow: sigma is 0 at the image and lambda
infinite; it returns the predicted x_0. And the step into t = 0, where the papers' grid ends and where they advise
lower order below 15 steps, at any number of steps: timesteps at equal distances make it up to 5 times as wide in
lambda as the one before, and a slope followed so far beyond where it was measured costs more than it gains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.errors import InputError


class DPMSolverPP2M:
    """The step function of DPM-Solver++(2M) for `samplers.sample_progressively`; one object is one run.

    :param diffusion: the process, respaced or not; its T steps are taken in order.
    """

    def __init__(self, diffusion: DiffusionProcess):
        self._grid = Grid(diffusion.alphas_cumprod)
        self._done = 0  # steps, counted: reading t would wait for the device
        self._past: Tensor | None = None  # x_0 as predicted a step ago

    def __call__(
        self,
        diffusion: DiffusionProcess,
        model: Callable,
        x: Tensor,
        t: Tensor,
        noise_fn: Callable | None = None,
        **options,
    ) -> dict[str, Tensor]:
        """Step from x_t [B, C, ...] to the next point: {"sample", "pred_xstart"}, shaped like x. `noise_fn` is unused.

        :param t: [B], T - 1 at the first call and one less at each that follows.
        :param options: see `samplers.guided_prediction`.
        :raises ValueError: called more than T times, or shapes as in `p_mean_variance`.
        """
        if self._done == self._grid.steps:
            raise ValueError(f"solver: found more steps than the {self._grid.steps} of its process, expected a new one")
        x_start = samplers.guided_prediction(diffusion, model, x, t, **options)["pred_xstart"]
        sample = self._predict(self._correct(x, x_start), x_start)
        self._past = x_start
        self._done += 1
        return {"sample": sample, "pred_xstart": x_start}

    def _correct(self, x: Tensor, x_start: Tensor) -> Tensor:
        return x

    def _predict(self, x: Tensor, x_start: Tensor) -> Tensor:
        keep, level, slope = self._grid.prediction(self._done)
        sample = keep * x + level * x_start
        return sample if self._past is None else sample + slope * (x_start - self._past)


class UniPC2(DPMSolverPP2M):
    """The step function of UniPC of order 2, B(h) = exp(h) - 1 ("bh2"); one object is one run.

    Its predictor is then that of DPM-Solver++(2M). Once x_0 is predicted at the new point, the step that led there
    is taken again with it, at no evaluation more: third order. The image is not corrected, as nothing is evaluated
    there; "sample" is the point before its correction.
    """

    def __init__(self, diffusion: DiffusionProcess):
        super().__init__(diffusion)
        self._from: Tensor | None = None  # the corrected x of the step before
        self._older: Tensor | None = None  # x_0 as predicted two steps ago

    def _correct(self, x: Tensor, x_start: Tensor) -> Tensor:
        if self._past is not None:
            keep, level, past, new = self._grid.correction(self._done - 1)
            x = keep * self._from + level * self._past + new * (x_start - self._past)
            if self._older is not None:
                x = x + past * (self._older - self._past)
        self._from, self._older = x, self._past
        return x


class Grid:
    """The points of a run and the weights of its steps, float64. Step n leads from point n to n + 1.

    :param alphas_cumprod: abar of the process, [T], decreasing; point n is its index T - 1 - n, point T the image.
    """

    def __init__(self, alphas_cumprod: np.ndarray):
        abar = np.append(alphas_cumprod[::-1], 1.0)
        self.steps = len(abar) - 1
        self._alpha, self._sigma = np.sqrt(abar), np.sqrt(1 - abar)
        with np.errstate(divide="ignore"):  # lambda is infinite at the image
            self._lambda = np.log(self._alpha) - np.log(self._sigma)

    def prediction(self, n: int) -> tuple[float, float, float]:
        """Return (keep, level, slope) of x' = keep x + level m + slope (m - m_past), with m the newest x_0.

        The slope is that of 2211.01095, Alg. 2, and 0 in the first step and the last two.
        """
        keep, level, h = self._first_order(n)
        second_order = 0 < n < self.steps - 2
        slope = 0.5 * level * h / (self._lambda[n] - self._lambda[n - 1]) if second_order else 0.0
        return keep, level, float(slope)

    def correction(self, n: int) -> tuple[float, float, float, float]:
        """Return (keep, level, past, new) of x' = keep x + level m + past (m_past - m) + new (m' - m), m' found at x'.

        They integrate the parabola through the three x_0 exactly: the conditions of 2302.04867, Theorem 3.1, in which
        B(h) cancels. In the first step, where there are two x_0, the one weight is half of B(h).
        """
        keep, level, h = self._first_order(n)
        if n == 0:
            return keep, level, 0.0, 0.5 * level
        # The integrals of u and u^2 in place of x_0(u), by parts.
        first = self._alpha[n + 1] - level / h
        second = self._alpha[n + 1] - 2 * first / h
        past_u = (self._lambda[n - 1] - self._lambda[n]) / h
        past = (second - first) / (past_u**2 - past_u)
        return keep, level, float(past), float(first - past * past_u)

    def _first_order(self, n: int) -> tuple[float, float, float]:
        """Return sigma'/sigma; the integral of a constant 1, alpha' (1 - exp(-h)); h."""
        h = self._lambda[n + 1] - self._lambda[n]
        return float(self._sigma[n + 1] / self._sigma[n]), float(-self._alpha[n + 1] * np.expm1(-h)), float(h)


class Sampler(NamedTuple):
    """A sampler: its name in reports, and its loop for a process, with the arguments of `sample_progressively`."""

    title: str
    loop: Callable[[DiffusionProcess], Callable[..., Tensor]]


def _solve(solver: type[DPMSolverPP2M], diffusion: DiffusionProcess, model: Callable, shape, **options) -> Tensor:
    steps = samplers.sample_progressively(diffusion, solver(diffusion), model, shape, **options)
    return samplers.last(steps)["sample"]


# Samplers by their names in --sampler and in reports.
SAMPLERS = {
    "ddpm": Sampler("DDPM", lambda diffusion: diffusion.p_sample_loop),
    "ddim": Sampler("DDIM", lambda diffusion: diffusion.ddim_sample_loop),
    "dpmpp2m": Sampler("DPM-Solver++(2M)", lambda diffusion: partial(_solve, DPMSolverPP2M, diffusion)),
    "unipc": Sampler("UniPC", lambda diffusion: partial(_solve, UniPC2, diffusion)),
}


def sampling_loop(diffusion: DiffusionProcess, sampler: str = "", use_ddim: bool = False) -> Callable[..., Tensor]:
    """Return the loop that the flags ask for: (model, shape, noise, noise_fn, clip_denoised, cond_fn, ...) -> samples.

    :param sampler: a name in SAMPLERS; "": ddim with `use_ddim`, else ddpm, as upstream.
    InputError when the two contradict each other.
    """
    if use_ddim and sampler not in ("", "ddim"):
        raise InputError(f"--sampler: found {sampler} together with --use_ddim, expected ddim or no --use_ddim")
    return SAMPLERS[sampler or ("ddim" if use_ddim else "ddpm")].loop(diffusion)
