"""Data from a Gaussian with independent pixels: its exact denoiser, of which everything else follows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion.schedules import get_named_beta_schedule

ABAR = torch.from_numpy(np.cumprod(1 - get_named_beta_schedule("linear", 1000)))


class GaussianData:
    """x_0 ~ N(mean, deviation^2), mean and deviation float64 tensors of an image's shape."""

    def __init__(self, shape: tuple[int, ...] = (1, 4, 4), seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.mean = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.deviation = 0.2 + 0.3 * torch.rand(shape, generator=generator, dtype=torch.float64)

    def slope(self, abar: Tensor) -> Tensor:
        """d E[x_0 | x_t] / d x_t, of each pixel, for abar [B, 1, ...]."""
        return abar.sqrt() * self.deviation**2 / (abar * self.deviation**2 + 1 - abar)

    def x_0(self, x: Tensor, abar: Tensor) -> Tensor:
        """E[x_0 | x_t]."""
        return self.mean + self.slope(abar) * (x - abar.sqrt() * self.mean)

    def eps(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
        """The model that predicts the noise, of `ABAR`'s process."""
        abar = at(t, x)
        return ((x.double() - abar.sqrt() * self.x_0(x.double(), abar)) / (1 - abar).sqrt()).to(x.dtype)

    def v(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
        """The model that predicts v = alpha eps - sigma x_0."""
        abar = at(t, x)
        return abar.sqrt() * self.eps(x, t) - (1 - abar).sqrt() * self.x_0(x, abar)

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x] where x = x_0 + sigma * noise, sigma [B]."""
        abar = 1 / (1 + sigma.double().reshape(-1, *[1] * (x.dim() - 1)) ** 2)
        return self.x_0(x * abar.sqrt(), abar)


def at(t: Tensor, like: Tensor) -> Tensor:
    """abar of timesteps [B], as [B, 1, ...]."""
    return ABAR[torch.as_tensor(t).long()].reshape(-1, *[1] * (like.dim() - 1))


def smooth_classifier(shape: tuple[int, ...] = (1, 4, 4), classes: int = 5, seed: int = 7):
    """A classifier in float64 that depends on t."""
    pixels = int(np.prod(shape))
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(n, m, generator=generator, dtype=torch.float64) / 4 for n, m in ((pixels, 20), (20, classes))
    )

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        return (1 + t[:, None] / 1000) * 5 * torch.tanh(x.flatten(1).double() @ first) @ second

    return classifier
