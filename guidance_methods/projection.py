"""The difference of two models' predictions, projected, bounded and carried over the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from guided_diffusion.diffusion.process import per_sample

from .denoiser import EPS, AlphasCumprod, check_prediction, x0_coefficients
from .run_state import RunState


class AdaptiveProjection:
    """Adaptive projected guidance (APG): what oversaturates is taken out of the difference of the two models.

    Sadat et al., "Eliminating oversaturation and artifacts of high guidance scales in diffusion models", ICLR 2025
    (arXiv 2410.02416). In terms of x_0, with D strong's prediction and d the difference of the predictions:

        d <- d + momentum * (d of the step before, as this line made it)
        d <- d min(1, norm / |d|)
        d <- d_orthogonal + eta d_parallel,   d_parallel = <d, D> / <D, D> D, over all pixels of a sample

    and then D + (w - 1) d. momentum = 0, norm = 0 (no bound) and eta = 1 change nothing.

    :param alphas_cumprod: abar of every timestep of the original process [T]; predicts: see `Denoiser`: what the
        models return, from which x_0 and its difference are computed and into which the result is put back.
    :param eta: share of the parallel part, 0 in the paper; norm: the bound r, 0: none; momentum: beta, -1 < beta < 1,
        negative in the paper (-0.5).
    :raises ValueError: values out of range, another `predicts`.
    """

    def __init__(
        self,
        alphas_cumprod: AlphasCumprod,
        predicts: str = EPS,
        eta: float = 0.0,
        norm: float = 0.0,
        momentum: float = 0.0,
    ):
        check_prediction(predicts)
        if not norm >= 0:
            raise ValueError(f"norm: found {norm}, expected at least 0; 0 is no bound")
        if not -1 < momentum < 1:
            raise ValueError(f"momentum: found {momentum}, expected a number between -1 and 1")
        self.alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        self.predicts, self.eta, self.norm, self.momentum = predicts, eta, norm, momentum
        self.state = RunState()

    def __call__(self, strong: Tensor, difference: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return the projected difference, like the difference given: in terms of what the models predict."""
        self.alphas_cumprod = self.alphas_cumprod.to(x.device)
        level, slope = x0_coefficients(self.predicts, self.alphas_cumprod[t.long()], like=x)
        d = (slope * difference).double()
        if self.momentum:
            self.state.begin_step(x, t)
            d = d + self.momentum * self.state.get("d", d)
            self.state.keep(torch.ones(len(x), dtype=torch.bool, device=x.device), d=d)
        if self.norm:
            d = d * (self.norm / _dot(d, d).sqrt().clamp(min=1e-30)).clamp(max=1)
        x_0 = (level * x + slope * strong).double()
        parallel = _dot(d, x_0) / _dot(x_0, x_0).clamp(min=1e-30) * x_0
        return ((d - (1 - self.eta) * parallel) / slope).to(difference.dtype)

    def reset(self) -> None:
        """Forget the batch."""
        self.state.reset()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample's pixels, [B, 1, ...]."""
    return per_sample((a * b).flatten(1).sum(dim=1), a)
