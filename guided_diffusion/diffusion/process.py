"""The diffusion process: its tables, q(x_t | x_0), p(x_{t-1} | x_t) and how guidance enters.

Notation of Ho et al. 2020 and Dhariwal & Nichol 2021; t is a 0-based index into the (respaced) process.
The samplers over it are plain functions in `samplers`; `gaussian` adds the training objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType
from guided_diffusion.diffusion.schedules import diffusion_tables

# Arguments of a guidance, and the attribute by which it asks for each.
WANTS = {"x_0": "wants_x0", "variance": "wants_variance"}

LEARNED = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
_FIXED = {  # the tables of the variance and of its logarithm
    ModelVarType.FIXED_SMALL: ("posterior_variance", "posterior_log_variance_clipped"),
    ModelVarType.FIXED_LARGE: ("_large_variance", "_log_large_variance"),
}


class TimestepMap:
    """Timesteps that models get for a process's t: those of the original process, on a 1000-step scale if wanted.

    :param timesteps: that of the original process for each t.
    :param rescale: multiply by 1000 / original_num_steps (float).
    """

    def __init__(self, timesteps: Sequence[int], rescale: bool, original_num_steps: int):
        self.timesteps, self.rescale, self.original_num_steps = list(timesteps), rescale, original_num_steps
        self._tensors: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, t: Tensor) -> Tensor:
        """Return the timesteps [B] for t [B], of its dtype unless rescaled."""
        key = (t.device, t.dtype)
        if key not in self._tensors:  # kept: copying it to the device every time would make the host wait
            self._tensors[key] = torch.tensor(self.timesteps, device=t.device, dtype=t.dtype)
        original = self._tensors[key][t]
        return original.float() * (1000.0 / self.original_num_steps) if self.rescale else original


class DiffusionProcess:
    """A diffusion process over T steps.

    :param betas: variances of q(x_t | x_{t-1}), [T], each in (0, 1]; ValueError otherwise.
    :param model_mean_type, model_var_type: what the network predicts.
    :param loss_type: what `training_losses` returns.
    :param rescale_timesteps: give the network t * 1000 / T (float) instead of t, on the scale of a 1000-step process.

    Models are called as model(x_t, t, **model_kwargs) and guidance as cond_fn(x_t, t, **model_kwargs),
    which returns the gradient of log p(y | x_t), already scaled, shaped like x_t; one with the attribute wants_x0 is
    also given x_0, the predicted x_0, and one with wants_variance the variance of p(x_{t-1} | x_t), both shaped like
    x_t. The tables of `schedules.diffusion_tables` (betas, alphas_cumprod, ...) are attributes, float64 [T] each.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
    ):
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps

        vars(self).update(diffusion_tables(betas))
        self.num_timesteps = len(self.betas)
        self.model_timesteps = TimestepMap(range(self.num_timesteps), rescale_timesteps, self.num_timesteps)
        self._float32_tables: dict[tuple[str, torch.device], Tensor] = {}

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Return entries t [B] of the table `name`, as float32 [B, 1, ...] of like's rank, on t's device."""
        key = (name, t.device)
        if key not in self._float32_tables:
            self._float32_tables[key] = torch.from_numpy(getattr(self, name)).to(t.device, torch.float32)
        return per_sample(self._float32_tables[key][t], like)

    # --- q: adding noise -------------------------------------------------------------------------------

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_t | x_0), shaped like x_start (Eq. 2 of the paper)."""
        mean = self.at("sqrt_alphas_cumprod", t, x_start) * x_start
        variance = self.at("_one_minus_alphas_cumprod", t, x_start).expand_as(x_start)
        log_variance = self.at("log_one_minus_alphas_cumprod", t, x_start).expand_as(x_start)
        return mean, variance, log_variance

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw x_t from q(x_t | x_0); `noise` replaces the standard normal draw."""
        noise = torch.randn_like(x_start) if noise is None else noise
        if noise.shape != x_start.shape:
            raise ValueError(f"noise: found shape {tuple(noise.shape)}, expected {tuple(x_start.shape)}")
        signal = self.at("sqrt_alphas_cumprod", t, x_start) * x_start
        return signal + self.at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0), shaped like x_t."""
        _expect_same_shape(x_start, x_t)
        mean = self.at("posterior_mean_coef1", t, x_t) * x_start + self.at("posterior_mean_coef2", t, x_t) * x_t
        variance = self.at("posterior_variance", t, x_t).expand_as(x_t)
        log_variance = self.at("posterior_log_variance_clipped", t, x_t).expand_as(x_t)
        return mean, variance, log_variance

    # --- p: removing noise -----------------------------------------------------------------------------

    def p_mean_variance(
        self,
        model: Callable,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
        model_kwargs: dict | None = None,
    ) -> dict[str, Tensor]:
        """The network's p(x_{t-1} | x_t) and its guess of x_0.

        :param x: x_t, [B, C, ...]; t: [B].
        :param clip_denoised: clamp the guess of x_0 to [-1, 1], after `denoised_fn`.
        :return: "mean", "variance", "log_variance", "pred_xstart", each shaped like x.
        :raises ValueError: t or the network's output have the wrong shape.
        """
        if t.shape != (x.shape[0],):
            raise ValueError(f"t: found shape {tuple(t.shape)}, expected ({x.shape[0]},)")
        output = self.call(model, x, t, model_kwargs)
        learned = self.model_var_type in LEARNED
        expected = (x.shape[0], x.shape[1] * (2 if learned else 1), *x.shape[2:])
        if output.shape != expected:
            raise ValueError(f"model output: found shape {tuple(output.shape)}, expected {expected}")
        if learned:
            output, variance_output = output.chunk(2, dim=1)
            log_variance = self._learned_log_variance(variance_output, x, t)
            variance = torch.exp(log_variance)
        else:
            tables = _FIXED[self.model_var_type]
            variance, log_variance = (self.at(name, t, x).expand_as(x) for name in tables)

        def refine(x_start: Tensor) -> Tensor:
            x_start = x_start if denoised_fn is None else denoised_fn(x_start)
            return x_start.clamp(-1, 1) if clip_denoised else x_start

        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            pred_xstart = refine(self._predict_xstart_from_xprev(x_t=x, t=t, xprev=output))
            mean = output
        else:
            if self.model_mean_type is ModelMeanType.EPSILON:
                output = self._predict_xstart_from_eps(x_t=x, t=t, eps=output)
            pred_xstart = refine(output)
            mean, _, _ = self.q_posterior_mean_variance(x_start=pred_xstart, x_t=x, t=t)
        return {"mean": mean, "variance": variance, "log_variance": log_variance, "pred_xstart": pred_xstart}

    def _learned_log_variance(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if self.model_var_type is ModelVarType.LEARNED:
            return output
        lowest = self.at("posterior_log_variance_clipped", t, x)
        highest = self.at("_log_betas", t, x)
        fraction = (output + 1) / 2
        return fraction * highest + (1 - fraction) * lowest

    def _predict_xstart_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        _expect_same_shape(x_t, eps)
        return self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t - self.at("sqrt_recipm1_alphas_cumprod", t, x_t) * eps

    def _predict_xstart_from_xprev(self, x_t: Tensor, t: Tensor, xprev: Tensor) -> Tensor:
        _expect_same_shape(x_t, xprev)
        return self.at("_xprev_weight", t, x_t) * xprev - self.at("_x_t_weight", t, x_t) * x_t

    def predict_eps(self, x_t: Tensor, t: Tensor, pred_xstart: Tensor) -> Tensor:
        """Return the noise in x_t if x_0 is `pred_xstart`, shaped like x_t."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, x_t) * x_t
        return (scaled - pred_xstart) / self.at("sqrt_recipm1_alphas_cumprod", t, x_t)

    _predict_eps_from_xstart = predict_eps  # upstream's name

    def call(self, model: Callable, x: Tensor, t: Tensor, model_kwargs: dict | None = None) -> Tensor:
        """Return the output of a model or cond_fn for x_t; it gets `model_timesteps` of this process's t."""
        if not getattr(model, "maps_timesteps", False):
            t = self.model_timesteps(t)
        return model(x, t, **(model_kwargs or {}))

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        return t.float() * (1000.0 / self.num_timesteps) if self.rescale_timesteps else t

    # --- guidance --------------------------------------------------------------------------------------

    def guidance(
        self, cond_fn: Callable, p_mean_var: dict[str, Tensor], x: Tensor, t: Tensor, model_kwargs: dict | None
    ) -> Tensor:
        """Return what a cond_fn gives for x_t, told the model's x_0 and variance where it wants them.

        :param p_mean_var: "pred_xstart" and "variance" of `p_mean_variance`, those that it wants.
        """
        told = wanted(cond_fn, {"x_0": p_mean_var.get("pred_xstart"), "variance": p_mean_var.get("variance")})
        return self.call(cond_fn, x, t, {**(model_kwargs or {}), **told})

    def condition_mean(
        self, cond_fn: Callable, p_mean_var: dict[str, Tensor], x: Tensor, t: Tensor, model_kwargs: dict | None = None
    ) -> Tensor:
        """Return the mean shifted by variance * gradient, evaluated at x_t (Eq. 8; Dhariwal & Nichol, Alg. 1)."""
        gradient = self.guidance(cond_fn, p_mean_var, x, t, model_kwargs)
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self,
        cond_fn: Callable,
        p_mean_var: dict[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict | None = None,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return `p_mean_var` with eps shifted by -sqrt(1 - abar_t) * gradient (Alg. 1, DDIM branch).

        eps is recovered from the (clipped) pred_xstart; the new pred_xstart and mean are not clipped again.

        :param refine: x_0 -> x_0, of the new pred_xstart, and of the one that the guidance is told.
        """
        abar = self.at("alphas_cumprod", t, x)
        eps = self.predict_eps(x, t, p_mean_var["pred_xstart"])
        told = p_mean_var
        if refine is not None and getattr(cond_fn, WANTS["x_0"], False):
            told = {**p_mean_var, "pred_xstart": refine(p_mean_var["pred_xstart"])}
        gradient = self.guidance(cond_fn, told, x, t, model_kwargs)
        eps = eps - (1 - abar).sqrt() * gradient
        pred_xstart = self._predict_xstart_from_eps(x, t, eps)
        pred_xstart = pred_xstart if refine is None else refine(pred_xstart)
        mean, _, _ = self.q_posterior_mean_variance(x_start=pred_xstart, x_t=x, t=t)
        return {**p_mean_var, "pred_xstart": pred_xstart, "mean": mean}


def wanted(guidance: Callable, told: dict[str, object]) -> dict[str, object]:
    """Return the arguments without those of WANTS that the guidance does not ask for by its attribute."""
    return {name: value for name, value in told.items() if name not in WANTS or getattr(guidance, WANTS[name], False)}


def per_sample(values_B: Tensor, like: Tensor) -> Tensor:
    """Return values [B] as [B, 1, ...] of like's rank."""
    return values_B.reshape(-1, *[1] * (like.dim() - 1))


def _expect_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
