"""Where the scorer looks: at x_t, at the x_0 predicted from it, or through that prediction.

| place | gradient G | network evaluations a step, besides the model's and the scorer's |
|---|---|---|
| noisy | d log p(y | x_t) / d x_t | none; the scorer must know noise: a `ClassifierGuidance` as it is |
| denoised | d log p(y | x_0) / d x_0 at the predicted x_0 | none |
| through | (d x_0 / d x_t)^T times that | the model once more, forwards and backwards |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.process import per_sample

from .wrapped import Wrapped, ask


class AtDenoised(Wrapped):
    """A guidance at the predicted x_0 in place of x_t, the prediction's Jacobian taken as the identity.

    EluCD (Ma et al., ICLR 2024). The inner guidance is called with x_0 and t; no backward pass goes through the
    diffusion model. ValueError where the sampler does not tell x_0: one that knows of `wants_x0` does.
    """

    wants_x0 = True

    def __call__(self, x: Tensor, t: Tensor, x_0: Tensor | None = None, **kwargs: object) -> Tensor:
        """Return the guidance, shaped like x_t; `kwargs` are the inner guidance's."""
        if x_0 is None:
            raise ValueError("x_0: missing; guidance at the denoised image needs a sampler that honours wants_x0")
        return self.guidance(x_0, t, **kwargs)


class Through(Wrapped):
    """A guidance at the predicted x_0, led back to x_t by the exact chain rule through the diffusion model.

    G = J^T g with g the inner guidance at x_0 and J = d x_0 / d x_t: diffusion posterior sampling (Chung et al. 2023),
    universal guidance (Bansal et al. 2023), without their step-size rules. A step costs about three times the model's
    evaluation: the sampler's, and one forwards and backwards here; and the memory of a backward pass.

    :param denoiser: denoiser(x_t, t, **kwargs) -> x_0, differentiable: a `Denoiser`. It and the guidance are called
        with the same `kwargs`.
    """

    wants_x0 = wants_variance = False

    def __init__(self, guidance: Callable[..., Tensor], denoiser: Callable[..., Tensor]):
        super().__init__(guidance)
        self.denoiser = denoiser

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the guidance, shaped and typed like x_t."""
        # Autograd keeps no tensor that was made in inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            x_in = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
            x_0 = self.denoiser(x_in, t, **kwargs)
        gradient = self.guidance(x_0.detach(), t, **kwargs)
        with torch.inference_mode(False):
            # With a largest element of 1, so that nothing overflows or vanishes in half precision on the way.
            size = per_sample(gradient.flatten(1).abs().amax(dim=1), x)
            unit = (gradient / size.clamp(min=1e-30)).to(x_0.dtype)
            (pulled,) = torch.autograd.grad(x_0, x_in, unit)
        return (pulled.to(gradient.dtype) * size).to(x.dtype)


class SineVariance(Wrapped):
    """EluCD's larger shift of the mean: mean += (Sigma_t + share max(Sigma) sin(pi t / T)) G.

    Ma et al., ICLR 2024, with share = 0.3; max(Sigma) is read as the largest variance of the process. As DDPM adds
    Sigma_t times the guidance to the mean, the guidance is multiplied by 1 + share max(Sigma) sin(pi t / T) / Sigma_t,
    elementwise with Sigma_t as the model has it; by 1 where Sigma_t is 0. Samplers that shift eps multiply by the same.

    :param max_variance: max(Sigma), such as diffusion.betas.max(); num_timesteps: T of the original process, in which
        t counts.
    """

    wants_variance = True

    def __init__(
        self, guidance: Callable[..., Tensor], max_variance: float, num_timesteps: int = 1000, share: float = 0.3
    ):
        super().__init__(guidance)
        self.largest, self.num_timesteps = share * float(max_variance), num_timesteps

    def __call__(self, x: Tensor, t: Tensor, variance: Tensor | None = None, **kwargs: object) -> Tensor:
        """Return the guidance, shaped and typed like x_t; ValueError where the sampler does not tell the variance."""
        if variance is None:
            raise ValueError("variance: missing; expected a sampler that honours wants_variance")
        guidance = ask(self.guidance, x, t, {**kwargs, "variance": variance})
        t_B = one_per_sample(t, x).double()
        sine = per_sample((math.pi * t_B / self.num_timesteps).sin(), x).to(variance.dtype)
        factor = torch.where(variance > 0, 1 + self.largest * sine / variance, 1.0)
        return (guidance * factor).to(x.dtype)
