"""Denoising likelihood score matching (Chao et al. 2022): a loss that trains the gradient of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guided_diffusion.diffusion.enums import ModelMeanType
from guided_diffusion.diffusion.process import DiffusionProcess, per_sample
from guided_diffusion.models.layers import mean_flat
from guided_diffusion.training.classifier_loop import Noised, evaluate_plainly

# The gradient is computed at this scale, so that it stays normal numbers in float16. A power of two: float32 is exact.
_SCALE = 2.0**8

# Whether more is better, of the values below.
HIGHER_IS_BETTER = {"dlsm": False, "dlsm_gain": True}


class DenoisingLikelihood:
    """Evaluates a classifier and how much its gradient improves the denoising of a labelled image, in training a loss.

    Chao et al., "Denoising likelihood score matching for conditional score-based data generation", ICLR 2022. For
    x_t = sqrt(abar) x_0 + sigma eps, sigma^2 = 1 - abar, label y and a frozen unconditional noise predictor eps_u:

        L = || eps - (eps_u(x_t, t) - sigma g) ||^2,    g = grad_x log p(y | x_t),

    which is smallest for the true gradient, since E[eps | x_t, y] = eps_u - sigma grad_x log p(y | x_t) for an exact
    eps_u. Here || . ||^2 is the mean over pixels and channels, as in the diffusion model's loss. The paper has half of
    the sum over them, of scores; with its noise levels weighted by sigma^2 that is `weight` = C H W / 2.

    An instance is the `evaluate` of `ClassifierTrainLoop`. It returns the logits and, [B] each: "dlsm", L;
    "dlsm_gain", L without guidance (g = 0) less L; "dlsm_size", the mean square of sigma g; "loss", weight * L.

    :param model: eps_u, model(x_t, t) -> [B, C, H, W], or with more channels, which do not count; it may predict x_0.
    :param diffusion: its process, with the classifier's timesteps.
    :param weight: 0: training evaluates the logits alone.
    """

    def __init__(self, model: Callable[..., Tensor], diffusion: DiffusionProcess, weight: float = 0.0):
        self.model, self.diffusion, self.weight = model, diffusion, weight
        self._sigma_T = torch.from_numpy(diffusion.alphas_cumprod).neg().add(1).sqrt()

    def __call__(self, network: nn.Module, batch: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits [B, K] and the values; with gradients to the parameters where gradients are enabled."""
        trains = torch.is_grad_enabled()
        if trains and not self.weight:
            return evaluate_plainly(network, batch)
        x_t = batch.x_t.detach().requires_grad_()
        # The fused kernels of attention have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if trains else nullcontext():
            logits = network(x_t, batch.t)
            log_p_B = logits.log_softmax(dim=1).gather(1, batch.y[:, None])
            (gradient,) = torch.autograd.grad(log_p_B.sum() * _SCALE, x_t, create_graph=trains)
        self._sigma_T = self._sigma_T.to(x_t.device)
        sigma_B = per_sample(self._sigma_T[batch.t], x_t).to(x_t.dtype)
        terms = denoising_terms(batch.noise - self.predict_noise(x_t, batch.t), sigma_B * (gradient / _SCALE))
        return logits, terms | ({"loss": self.weight * terms["dlsm"]} if self.weight else {})

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return eps_u, shaped like x_t."""
        output = self.diffusion.call(self.model, x_t, t)[:, : x_t.shape[1]]
        predicts_x0 = self.diffusion.model_mean_type is ModelMeanType.START_X
        return self.diffusion.predict_eps(x_t, t, output) if predicts_x0 else output


def denoising_terms(residual: Tensor, guidance: Tensor) -> dict[str, Tensor]:
    """Return the values of `DenoisingLikelihood` but the loss, [B] each.

    :param residual: eps - eps_u, [B, ...]; guidance: sigma g, shaped like it. Only "dlsm" has a gradient.
    """
    shift, free = guidance.detach(), residual.detach()
    return {
        "dlsm": mean_flat((residual + guidance).square()),
        "dlsm_gain": -mean_flat(shift * (2 * free + shift)),
        "dlsm_size": mean_flat(shift.square()),
    }


def ideal_scale(values: Mapping[str, Tensor]) -> float:
    """Return s* = -sum sigma <r, g> / sum sigma^2 <g, g>, r = eps - eps_u: the factor on g for which L is smallest.

    From the images' "dlsm_gain", -2 sigma <r, g> - sigma^2 <g, g>, and "dlsm_size", sigma^2 <g, g>, [N] each. nan
    without any gradient.
    """
    gain, size = (float(values[name].double().sum()) for name in ("dlsm_gain", "dlsm_size"))
    return (gain / size + 1) / 2 if size else float("nan")
