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
        return betas_for_alpha_bar(num_diffusion_timesteps, lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2)
    raise NotImplementedError(f"noise_schedule: found {schedule_name!r}, expected 'linear' or 'cosine'")


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = 0.999
) -> np.ndarray:
    """Betas [T] whose running product of (1 - beta) follows `alpha_bar`, a function of time in [0, 1].

    Each beta is capped at `max_beta`, which keeps the last steps away from a singularity.
    """
    steps = num_diffusion_timesteps
    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), max_beta) for i in range(steps)])


def diffusion_tables(betas: np.ndarray) -> dict[str, np.ndarray]:
    """Return every table of a process that follows from its betas [T], float64 [T] each, by upstream's names or ours.

    abar is the running product of 1 - beta. The posterior_* tables belong to q(x_{t-1} | x_t, x_0), whose
    variance is 0 at t = 0; its "clipped" logarithm repeats the entry of t = 1 there.

    The large variance is beta_t, ModelVarType.FIXED_LARGE, with the posterior's at t = 0: beta_0 makes the decoder's
    likelihood worse (Ho et al. 2020). x_0 is xprev_weight * x_{t-1} - x_t_weight * x_t.

    :raises ValueError: betas that are no vector of numbers in (0, 1].
    """
    betas = np.array(betas, dtype=np.float64)
    if betas.ndim != 1 or not ((betas > 0) & (betas <= 1)).all():
        found = f"values {betas.min():.3g} to {betas.max():.3g}" if betas.size else "none"
        raise ValueError(f"betas of shape {betas.shape}: found {found}, expected a vector in (0, 1]")
    keep = 1.0 - betas
    abar = np.cumprod(keep)
    before, after = np.concatenate([[1.0], abar[:-1]]), np.concatenate([abar[1:], [0.0]])
    lost = 1.0 - abar
    variance = betas * (1.0 - before) / lost
    large = _with_first(betas, variance)
    coef1, coef2 = betas * np.sqrt(before) / lost, (1.0 - before) * np.sqrt(keep) / lost
    with np.errstate(divide="ignore", invalid="ignore"):  # a process of one step has no variance
        log_large, xprev_weight, x_t_weight = np.log(large), 1.0 / coef1, coef2 / coef1
    return {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "alphas_cumprod_next": after,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(lost),
        "log_one_minus_alphas_cumprod": np.log(lost),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / abar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(_with_first(variance, variance)),
        "posterior_mean_coef1": coef1,
        "posterior_mean_coef2": coef2,
        "_one_minus_alphas_cumprod": lost,
        "_log_betas": np.log(betas),
        "_large_variance": large,
        "_log_large_variance": log_large,
        "_xprev_weight": xprev_weight,
        "_x_t_weight": x_t_weight,
    }


def _with_first(table: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """`table` with its entry 0 replaced by entry 1 of `donor` (a one-step process keeps its own)."""
    return np.append(donor[min(1, len(donor) - 1)], table[1:])
