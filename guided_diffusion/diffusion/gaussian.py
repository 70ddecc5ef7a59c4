"""Upstream's class over the process, its samplers and its training objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion import samplers
from guided_diffusion.diffusion.enums import LossType, ModelMeanType
from guided_diffusion.diffusion.likelihoods import discretized_gaussian_log_likelihood, normal_kl
from guided_diffusion.diffusion.process import LEARNED, DiffusionProcess
from guided_diffusion.models.layers import mean_flat


class GaussianDiffusion(DiffusionProcess):
    """A `DiffusionProcess` with samplers and training objectives under upstream's method names.

    Ours are `noise_fn(x) -> noise like x`, which replaces torch.randn_like for reproducible sampling, and
    `callback`: see `samplers.sample_progressively`.
    """

    def p_sample(
        self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        noise_fn=torch.randn_like,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One DDPM step: see `samplers.ddpm_step`."""
        return samplers.ddpm_step(self, **_arguments(locals()))

    def ddim_sample(
        self, model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, eta=0.0,
        noise_fn=torch.randn_like,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One DDIM step: see `samplers.ddim_step`."""
        return samplers.ddim_step(self, **_arguments(locals()))

    def ddim_reverse_sample(
        self, model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, eta=0.0
    ) -> dict[str, Tensor]:  # fmt: skip
        """One deterministic step towards more noise: see `samplers.ddim_reverse_step`."""
        return samplers.ddim_reverse_step(self, **_arguments(locals()))

    def p_sample_loop_progressive(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, noise_fn=torch.randn_like, callback=None,
    ) -> Iterator[dict[str, Tensor]]:  # fmt: skip
        """All DDPM steps, yielding each one's result: see `samplers.sample_progressively`."""
        return samplers.sample_progressively(self, samplers.ddpm_step, **_arguments(locals()))

    def ddim_sample_loop_progressive(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, eta=0.0, noise_fn=torch.randn_like, callback=None,
    ) -> Iterator[dict[str, Tensor]]:  # fmt: skip
        """All DDIM steps, yielding each one's result: see `samplers.sample_progressively`."""
        return samplers.sample_progressively(self, samplers.ddim_step, **_arguments(locals()))

    def p_sample_loop(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, noise_fn=torch.randn_like, callback=None,
    ) -> Tensor:  # fmt: skip
        """Samples [B, C, ...] by DDPM (Alg. 1 of the paper, first branch)."""
        return samplers.last(self.p_sample_loop_progressive(**_arguments(locals())))["sample"]

    def ddim_sample_loop(
        self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None,
        device=None, progress=False, eta=0.0, noise_fn=torch.randn_like, callback=None,
    ) -> Tensor:  # fmt: skip
        """Samples [B, C, ...] by DDIM (Alg. 1, second branch); eta 0 is deterministic, eta 1 is DDPM-like."""
        return samplers.last(self.ddim_sample_loop_progressive(**_arguments(locals())))["sample"]

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None) -> dict[str, Tensor]:
        """Losses at timesteps t [B] for clean images x_start [B, C, ...].

        :return: "loss" [B], and for the MSE objectives "mse" [B] and, where the variance is learned, "vb" [B].
            The bound trains the variance alone: the predicted mean is detached in it.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise=noise)

        if self.loss_type.is_vb():
            loss = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised=False, model_kwargs=model_kwargs)
            scale = self.num_timesteps if self.loss_type is LossType.RESCALED_KL else 1
            return {"loss": loss["output"] * scale}

        output = self.call(model, x_t, t, model_kwargs)
        terms = {}
        if self.model_var_type in LEARNED:
            output, variance_output = output.chunk(2, dim=1)
            mean_detached = torch.cat([output.detach(), variance_output], dim=1)
            vb = self._vb_terms_bpd(lambda *_: mean_detached, x_start, x_t, t, clip_denoised=False)["output"]
            # The smaller weight keeps the bound from disturbing the squared error.
            terms["vb"] = vb * (self.num_timesteps / 1000.0) if self.loss_type is LossType.RESCALED_MSE else vb
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            target, _, _ = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
        else:
            target = x_start if self.model_mean_type is ModelMeanType.START_X else noise
        if output.shape != target.shape:
            raise ValueError(f"model output: found shape {tuple(output.shape)}, expected {tuple(target.shape)}")
        terms["mse"] = mean_flat((target - output) ** 2)
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None) -> dict[str, Tensor]:
        """The whole variational bound for x_start [B, C, ...], one noise draw per timestep from T - 1 down.

        :return: "total_bpd" and "prior_bpd" [B]; "vb", "xstart_mse" and "mse" (of eps) [B, T], in the order of
            evaluation: column 0 is t = T - 1.
        """
        columns: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for step in range(self.num_timesteps - 1, -1, -1):
            t = torch.full((x_start.shape[0],), step, device=x_start.device)
            noise = torch.randn_like(x_start)
            x_t = self.q_sample(x_start, t, noise=noise)
            with torch.no_grad():
                term = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
            eps = self.predict_eps(x_t, t, term["pred_xstart"])
            columns["vb"].append(term["output"])
            columns["xstart_mse"].append(mean_flat((term["pred_xstart"] - x_start) ** 2))
            columns["mse"].append(mean_flat((eps - noise) ** 2))
        result = {name: torch.stack(values, dim=1) for name, values in columns.items()}
        prior_B = self._prior_bpd(x_start)
        return {"total_bpd": result["vb"].sum(dim=1) + prior_B, "prior_bpd": prior_B, **result}

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None) -> dict[str, Tensor]:
        """One term of the bound: "output" [B] in bits per dimension, and "pred_xstart".

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, the decoder's negative log-likelihood at t = 0.
        """
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start=x_start, x_t=x_t, t=t)
        out = self.p_mean_variance(model, x_t, t, clip_denoised=clip_denoised, model_kwargs=model_kwargs)
        kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
        nll = -discretized_gaussian_log_likelihood(x_start, means=out["mean"], log_scales=0.5 * out["log_variance"])
        bits = torch.where(t == 0, mean_flat(nll) / math.log(2.0), mean_flat(kl) / math.log(2.0))
        return {"output": bits, "pred_xstart": out["pred_xstart"]}

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        """KL(q(x_T | x_0) || N(0, I)) per sample [B], in bits per dimension; nothing in it can be trained."""
        t = torch.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2.0)


def _arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Return a method's arguments by name, from its locals()."""
    return {name: value for name, value in names.items() if name != "self"}


def _extract_into_tensor(arr: np.ndarray, timesteps: Tensor, broadcast_shape: tuple[int, ...]) -> Tensor:
    """Entries `timesteps` [B] of a table as float32, expanded to `broadcast_shape` (B first)."""
    entries = torch.from_numpy(arr).to(timesteps.device)[timesteps].float()
    return entries.reshape(-1, *[1] * (len(broadcast_shape) - 1)).expand(broadcast_shape)
