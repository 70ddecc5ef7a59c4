"""The guidance in samplers on x = x_0 + sigma * noise: k-diffusion's, EDM's, and any other that calls D(x, sigma)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.process import per_sample
from guided_diffusion.diffusion.schedules import get_named_beta_schedule

from .denoiser import AlphasCumprod
from .wrapped import ask


class GuidedDenoiser:
    """denoiser(x, sigma, labels, **kwargs) = D + sigma^2 / sqrt(1 + sigma^2) G(x / sqrt(1 + sigma^2), t(sigma)).

    Karras et al. 2022: D = x + sigma^2 score(x; sigma). The guidance G is the gradient of log p(y | x_t) at
    x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise = x / sqrt(1 + sigma^2), of the variance-preserving process that its
    classifier was trained on, where (1 - abar_t) / abar_t = sigma^2; the chain rule gives the factor (derived here).
    t(sigma) is interpolated, linearly in log sigma. A sampler of second order calls this in both its stages, so both
    are guided; EDM's, k-diffusion's (sample_euler, sample_heun, sample_dpmpp_2m) take it as it is.

    :param denoiser: denoiser(x [B, C, ...], sigma [B] or a number, ...) -> D, shaped like x: k-diffusion's wrappers, an
        EDM network, any function. Its attributes (sigma_min, round_sigma, ...) are this object's, too.
    :param guidance: guidance(x_t, t, y=...); one that `wants_x0` gets D.
    :param alphas_cumprod: abar of every timestep of the classifier's process [T]; None: linear betas, T = 1000.
    :param interval: (lowest, highest) sigma, ends included, at which there is guidance; None: everywhere.
    :param whole_t: round t, for classifiers that look timesteps up in a table.
    :raises ValueError: an interval whose ends are the wrong way round.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        guidance: Callable[..., Tensor],
        alphas_cumprod: AlphasCumprod | None = None,
        interval: tuple[float, float] | None = None,
        whole_t: bool = False,
    ):
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"interval: found {tuple(interval)}, expected (lowest, highest) sigma")
        if alphas_cumprod is None:
            alphas_cumprod = np.cumprod(1 - get_named_beta_schedule("linear", 1000))
        abar_T = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        self._log_sigma_T = ((1 - abar_T) / abar_T).log() / 2
        self.denoiser, self.guidance, self.interval, self.whole_t = denoiser, guidance, interval, whole_t

    def __getattr__(self, name: str) -> Any:
        if name == "denoiser":  # not there yet: a copy in the making
            raise AttributeError(name)
        return getattr(self.denoiser, name)

    def __call__(self, x: Tensor, sigma: Any, labels: Tensor | None = None, **kwargs: object) -> Tensor:
        """Return the guided D, shaped and typed like the denoiser's.

        :param labels: [B], or one-hot [B, K], as EDM has them, handed on to the denoiser; else y=[B] of the kwargs
            (k-diffusion's extra_args) is the guidance's and, as all kwargs, the denoiser's.
        """
        denoised = self.denoiser(x, sigma, *(() if labels is None else (labels,)), **kwargs)
        y = kwargs.get("y") if labels is None else labels.argmax(dim=1) if labels.dim() == 2 else labels
        sigma_B = one_per_sample(sigma, x).flatten().double()
        lowest, highest = self.interval or (0.0, torch.inf)
        inside_B = (sigma_B >= lowest) & (sigma_B <= highest)
        if self.interval is not None and not bool(inside_B.any()):
            return denoised
        size = per_sample((1 + sigma_B**2).sqrt(), x)
        told = {"x_0": denoised.to(x.dtype)} | ({} if y is None else {"y": y})
        guidance = ask(self.guidance, (x / size).to(x.dtype), self.t_of(sigma_B), told)
        factor = per_sample(torch.where(inside_B, sigma_B**2, 0.0), x) / size
        return denoised + (factor * guidance).to(denoised.dtype)

    def t_of(self, sigma: Tensor) -> Tensor:
        """Return the timestep [B] of each sigma [B], from 0 to T - 1: float64, or whole numbers with `whole_t`."""
        self._log_sigma_T = self._log_sigma_T.to(sigma.device)
        table = self._log_sigma_T
        log_sigma_B = sigma.double().log()
        below_B = (torch.searchsorted(table, log_sigma_B, right=True) - 1).clamp(0, len(table) - 2)
        share_B = (log_sigma_B - table[below_B]) / (table[below_B + 1] - table[below_B])
        t_B = (below_B + share_B).clamp(0, len(table) - 1)
        return t_B.round().long() if self.whole_t else t_B
