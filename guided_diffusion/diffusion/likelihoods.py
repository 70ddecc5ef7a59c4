"""Likelihoods of Gaussians, continuous and discretised to 256 pixel levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Pixels are x / 127.5 - 1, so a level is 2/255 wide.
_HALF_LEVEL = 1.0 / 255.0
_EDGE = 0.999
_PROBABILITY_FLOOR = 1e-12


def normal_kl(mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """KL(N(mean1, exp logvar1) || N(mean2, exp logvar2)) in nats, elementwise, with broadcasting.

    Scalars are allowed, but ValueError when no argument is a tensor.
    """
    like = next((x for x in (mean1, logvar1, mean2, logvar2) if isinstance(x, Tensor)), None)
    if like is None:
        raise ValueError("normal_kl: found four scalars, expected at least one tensor")
    logvar1, logvar2 = (x if isinstance(x, Tensor) else torch.tensor(x).to(like) for x in (logvar1, logvar2))
    squared_gap = (mean1 - mean2) ** 2
    return 0.5 * (-1.0 + logvar2 - logvar1 + torch.exp(logvar1 - logvar2) + squared_gap * torch.exp(-logvar2))


def approx_standard_normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution function (error below 4e-4)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def discretized_gaussian_log_likelihood(x: Tensor, *, means: Tensor, log_scales: Tensor) -> Tensor:
    """Log-probability (nats, elementwise) of the 256-level bin that holds x under a Gaussian.

    :param x: targets in [-1, 1] that came from uint8; the outermost bins reach to infinity.
    :param means, log_scales: mean and log standard deviation, same shape as x (ValueError otherwise).
    """
    if not (x.shape == means.shape == log_scales.shape):
        raise ValueError(f"shapes differ: {tuple(x.shape)}, {tuple(means.shape)}, {tuple(log_scales.shape)}")
    centred = x - means
    inverse_std = torch.exp(-log_scales)
    cdf_above = approx_standard_normal_cdf(inverse_std * (centred + _HALF_LEVEL))
    cdf_below = approx_standard_normal_cdf(inverse_std * (centred - _HALF_LEVEL))
    probability = torch.where(x < -_EDGE, cdf_above, torch.where(x > _EDGE, 1.0 - cdf_below, cdf_above - cdf_below))
    return torch.log(probability.clamp(min=_PROBABILITY_FLOOR))
