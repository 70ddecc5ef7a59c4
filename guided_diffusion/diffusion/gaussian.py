"""Upstream's class over the process, its samplers and its training objectives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion import objectives, samplers
from guided_diffusion.diffusion.process import DiffusionProcess


class GaussianDiffusion(DiffusionProcess):
    """A `DiffusionProcess` with samplers and objectives under upstream's method names.

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
        """Losses [B] per term: see `objectives.training_losses`."""
        return objectives.training_losses(self, model, x_start, t, model_kwargs, noise, bound=self._vb_terms_bpd)

    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None) -> dict[str, Tensor]:
        """The whole variational bound: see `objectives.bits_per_dim`."""
        return objectives.bits_per_dim(
            self, model, x_start, clip_denoised, model_kwargs, bound=self._vb_terms_bpd, prior=self._prior_bpd
        )

    def _vb_terms_bpd(self, model, x_start, x_t, t, clip_denoised=True, model_kwargs=None) -> dict[str, Tensor]:
        return objectives.bound_term(self, model, x_start, x_t, t, clip_denoised, model_kwargs)

    def _prior_bpd(self, x_start: Tensor) -> Tensor:
        return objectives.prior_term(self, x_start)


def _arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Return a method's arguments by name, from its locals()."""
    return {name: value for name, value in names.items() if name != "self"}


def _extract_into_tensor(arr: np.ndarray, timesteps: Tensor, broadcast_shape: tuple[int, ...]) -> Tensor:
    """Entries `timesteps` [B] of a table as float32, expanded to `broadcast_shape` (B first)."""
    entries = torch.from_numpy(arr).to(timesteps.device)[timesteps].float()
    return entries.reshape(-1, *[1] * (len(broadcast_shape) - 1)).expand(broadcast_shape)
