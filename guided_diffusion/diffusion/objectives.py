"""Training losses and the variational bound, in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType
from guided_diffusion.diffusion.likelihoods import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.diffusion.process import DiffusionProcess
from guided_diffusion.models.layers import mean_flat


def training_losses(
    diffusion: DiffusionProcess,
    model: Callable,
    x_start: Tensor,
    t: Tensor,
    model_kwargs: dict | None = None,
    noise: Tensor | None = None,
    *,
    bound: Callable[..., dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Losses at timesteps t [B] for clean images x_start [B, C, ...].

    :param bound: gives a term of the bound as `bound_term` does, without its first argument.
    :return: "loss" [B], and for the MSE objectives "mse" [B] and, where the variance is learned, "vb" [B].
        The bound trains the variance alone: the predicted mean is detached in it.
    """
    noise = torch.randn_like(x_start) if noise is None else noise
    x_t = diffusion.q_sample(x_start, t, noise=noise)
    steps = diffusion.num_timesteps

    if diffusion.loss_type.is_vb():
        loss = bound(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)
        scale = steps if diffusion.loss_type is LossType.RESCALED_KL else 1
        return {"loss": loss["output"] * scale}

    output = diffusion.call(model, x_t, t, model_kwargs)
    terms = {}
    if diffusion.model_var_type in (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE):
        output, variance_output = output.chunk(2, dim=1)
        mean_detached = torch.cat([output.detach(), variance_output], dim=1)
        vb = bound(lambda *_: mean_detached, x_start, x_t, t, clip_denoised=False)["output"]
        # The smaller weight keeps the bound from disturbing the squared error.
        terms["vb"] = vb * (steps / 1000.0) if diffusion.loss_type is LossType.RESCALED_MSE else vb
    if diffusion.model_mean_type is ModelMeanType.PREVIOUS_X:
        target, _, _ = diffusion.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
    else:
        target = x_start if diffusion.model_mean_type is ModelMeanType.START_X else noise
    if output.shape != target.shape:
        raise ValueError(f"model output: found shape {tuple(output.shape)}, expected {tuple(target.shape)}")
    terms["mse"] = mean_flat((target - output) ** 2)
    terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
    return terms


def bound_term(
    diffusion: DiffusionProcess,
    model: Callable,
    x_start: Tensor,
    x_t: Tensor,
    t: Tensor,
    clip_denoised: bool = True,
    model_kwargs: dict | None = None,
) -> dict[str, Tensor]:
    """One term of the bound: "output" [B] in bits per dimension, and "pred_xstart".

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, the decoder's negative log-likelihood at t = 0.
    """
    true_mean, _, true_log_variance = diffusion.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
    out = diffusion.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
    kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
    nll = -discretized_gaussian_log_likelihood(x_start, means=out["mean"], log_scales=0.5 * out["log_variance"])
    bits = torch.where(t == 0, mean_flat(nll) / math.log(2.0), mean_flat(kl) / math.log(2.0))
    return {"output": bits, "pred_xstart": out["pred_xstart"]}


def prior_term(diffusion: DiffusionProcess, x_start: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || N(0, I)) per sample [B], in bits per dimension; nothing in it can be trained."""
    t = torch.full((x_start.shape[0],), diffusion.num_timesteps - 1, device=x_start.device)
    mean, _, log_variance = diffusion.q_mean_variance(x_start, t)
    return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2.0)


def bits_per_dim(
    diffusion: DiffusionProcess,
    model: Callable,
    x_start: Tensor,
    clip_denoised: bool = True,
    model_kwargs: dict | None = None,
    *,
    bound: Callable[..., dict[str, Tensor]],
    prior: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """The whole bound for x_start [B, C, ...], one noise draw per timestep from T - 1 down.

    :param bound, prior: as `bound_term` and `prior_term`, without their first argument.
    :return: "total_bpd" and "prior_bpd" [B]; "vb", "xstart_mse" and "mse" (of eps) [B, T], in the order of
        evaluation: column 0 is t = T - 1.
    """
    columns: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
    for step in range(diffusion.num_timesteps - 1, -1, -1):
        t = torch.full((x_start.shape[0],), step, device=x_start.device)
        noise = torch.randn_like(x_start)
        x_t = diffusion.q_sample(x_start, t, noise=noise)
        with torch.no_grad():
            term = bound(model, x_start, x_t, t, clip_denoised, model_kwargs)
        eps = diffusion.predict_eps(x_t, t, term["pred_xstart"])
        columns["vb"].append(term["output"])
        columns["xstart_mse"].append(mean_flat((term["pred_xstart"] - x_start) ** 2))
        columns["mse"].append(mean_flat((eps - noise) ** 2))
    result = {name: torch.stack(values, dim=1) for name, values in columns.items()}
    prior_B = prior(x_start)
    return {"total_bpd": result["vb"].sum(dim=1) + prior_B, "prior_bpd": prior_B, **result}
