"""The x_0 that a diffusion model predicts from x_t, as a function that can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.enums import ModelMeanType
from guided_diffusion.diffusion.process import DiffusionProcess, per_sample

AlphasCumprod = Tensor | np.ndarray | Sequence[float]
PREDICTIONS = EPS, X_0, V = ("eps", "x_0", "v")


def check_prediction(predicts: str) -> None:
    """ValueError for what is not in PREDICTIONS."""
    if predicts not in PREDICTIONS:
        raise ValueError(f"predicts: found {predicts!r}, expected one of {', '.join(PREDICTIONS)}")


def x0_coefficients(predicts: str, abar: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (level, slope), [B, 1, ...] of like's rank and abar's dtype, with x_0 = level x_t + slope output.

    With alpha^2 = abar and sigma^2 = 1 - abar: x_0 = (x_t - sigma eps) / alpha, the output itself, or
    alpha x_t - sigma v (Salimans & Ho 2022).

    :param abar: [B].
    """
    abar = per_sample(abar, like)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    if predicts == EPS:
        return 1 / alpha, -sigma / alpha
    return (alpha, -sigma) if predicts == V else (torch.zeros_like(alpha), torch.ones_like(alpha))


def all_alphas_cumprod(diffusion: DiffusionProcess) -> np.ndarray:
    """Return abar by original timestep, of a process respaced or not; nan where it has none, and is not asked."""
    timesteps = diffusion.model_timesteps.timesteps
    abar_T = np.full(max(timesteps) + 1, np.nan)
    abar_T[timesteps] = diffusion.alphas_cumprod
    return abar_T


class Denoiser:
    """denoiser(x_t [B, C, ...], t [B], **kwargs) -> predicted x_0, shaped like x_t.

    :param model: model(x_t, t, **kwargs) -> [B, C, ...], or with more channels (a learned variance), which do not
        count.
    :param alphas_cumprod: abar of every timestep of the original process [T], in which t counts.
    :param predicts: what the model returns: "eps", "x_0" or "v" (ValueError for others).
    :param clip: clamp x_0 to [-1, 1]; nothing comes back through what is clamped.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        alphas_cumprod: AlphasCumprod,
        predicts: str = EPS,
        clip: bool = False,
    ):
        check_prediction(predicts)
        self.model, self.predicts, self.clip = model, predicts, clip
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64)

    @classmethod
    def of(cls, diffusion: DiffusionProcess, model: Callable[..., Tensor], clip: bool = True) -> Denoiser:
        """Return the model's denoiser in a process, respaced or not; ValueError where the model predicts x_{t-1}.

        :param clip: as the sampler's clip_denoised.
        """
        predicts = {ModelMeanType.EPSILON: EPS, ModelMeanType.START_X: X_0}.get(diffusion.model_mean_type)
        if predicts is None:
            raise ValueError("diffusion: found a model that predicts x_{t-1}, expected one that predicts eps or x_0")
        return cls(model, all_alphas_cumprod(diffusion), predicts, clip)

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return x_0. Its other arguments are the model's."""
        output = self.model(x, t, **kwargs)[:, : x.shape[1]]
        if self.predicts != X_0:
            self.alphas_cumprod = self.alphas_cumprod.to(x.device)
            abar_B = self.alphas_cumprod[one_per_sample(t, x).long()]
            level, slope = x0_coefficients(self.predicts, abar_B, like=x)
            output = level.to(x.dtype) * x + slope.to(x.dtype) * output
        return output.clamp(-1, 1) if self.clip else output
