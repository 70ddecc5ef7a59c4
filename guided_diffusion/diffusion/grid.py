"""The points of a sampling run, and solvers that step through them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from torch import Tensor

from guided_diffusion.diffusion.process import DiffusionProcess


class Grid:
    """The points of a run and the weights of its steps, float64. Step n leads from point n to n + 1.

    alpha and sigma, [T + 1], are those of x = alpha x_0 + sigma noise: alpha^2 = abar, sigma^2 = 1 - abar. ratio is
    sigma / alpha, the noise level of x / alpha.

    :param alphas_cumprod: abar of the process, [T], decreasing; point n is its index T - 1 - n, point T the image.
    """

    def __init__(self, alphas_cumprod: np.ndarray):
        abar = np.append(alphas_cumprod[::-1], 1.0)
        self.steps = len(abar) - 1
        self.alpha, self.sigma = np.sqrt(abar), np.sqrt(1 - abar)
        self.ratio = self.sigma / self.alpha
        with np.errstate(divide="ignore"):  # lambda is infinite at the image
            self._lambda = np.log(self.alpha) - np.log(self.sigma)

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
        first = self.alpha[n + 1] - level / h
        second = self.alpha[n + 1] - 2 * first / h
        past_u = (self._lambda[n - 1] - self._lambda[n]) / h
        past = (second - first) / (past_u**2 - past_u)
        return keep, level, float(past), float(first - past * past_u)

    def _first_order(self, n: int) -> tuple[float, float, float]:
        """Return sigma'/sigma; the integral of a constant 1, alpha' (1 - exp(-h)); h."""
        h = self._lambda[n + 1] - self._lambda[n]
        return float(self.sigma[n + 1] / self.sigma[n]), float(-self.alpha[n + 1] * np.expm1(-h)), float(h)


class Solver(ABC):
    """A deterministic step function for `samplers.sample_progressively` that counts its steps; one object is one run.

    :param diffusion: the process, respaced or not; its T steps are taken in order.
    """

    def __init__(self, diffusion: DiffusionProcess):
        self.grid = Grid(diffusion.alphas_cumprod)
        self.done = 0  # steps, counted: reading t would wait for the device

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
        if self.done == self.grid.steps:
            raise ValueError(f"solver: found more steps than the {self.grid.steps} of its process, expected a new one")
        result = self.step(diffusion, model, x, t, **options)
        self.done += 1
        return result

    @abstractmethod
    def step(
        self, diffusion: DiffusionProcess, model: Callable, x: Tensor, t: Tensor, **options
    ) -> dict[str, Tensor]:
        """Take step number `done`."""
