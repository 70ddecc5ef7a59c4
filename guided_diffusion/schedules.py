"""Noise schedules: the variances beta_t of q(x_t | x_{t-1}), as float64 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> np.ndarray:
    """Betas [T] of a named schedule; NotImplementedError for unknown names.

    "linear" (Ho et al. 2020): from 1e-4 to 0.02 at T = 1000, both ends scaled by 1000 / T elsewhere.
    "cosine" (Nichol & Dhariwal 2021): alphas_cumprod is a squared cosine with offset 0.008.
    """
    if schedule_name == "linear":
        stretch = 1000 / num_diffusion_timesteps
        return np.linspace(stretch * 0.0001, stretch * 0.02, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(num_diffusion_timesteps, _squared_cosine)
    raise NotImplementedError(f"noise_schedule: found {schedule_name!r}, expected 'linear' or 'cosine'")


def _squared_cosine(time: float) -> float:
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """Betas [T] whose running product of (1 - beta) follows `alpha_bar`, a function of time in [0, 1].

    Each beta is capped at `max_beta`, which keeps the last steps away from a singularity.
    """
    steps = num_diffusion_timesteps
    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)])
