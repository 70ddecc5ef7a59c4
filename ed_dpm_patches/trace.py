"""A record of guidance during sampling: per sample and step, how certain the classifier was and what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, ModelMeanType

FIELDS = ("t", "entropy_ratio", "p_y", "grad_norm", "scale", "relative_guidance")


class Trace:
    """Collects the observations of a `ClassifierGuidance` together with the size of the model's eps.

    Use `observe` as the guidance's observer and sample with `wrap(model)`. relative_guidance is
    sqrt(1 - abar_t) * |guidance| / |eps|: the shift of eps that the guidance makes (Alg. 1, DDIM), relative
    to eps itself.

    :param diffusion: the process that is sampled from (respaced or not, without rescale_timesteps).
    """

    def __init__(self, diffusion: GaussianDiffusion):
        original = getattr(diffusion, "timestep_map", range(diffusion.num_timesteps))
        self._abar = dict(zip(original, diffusion.alphas_cumprod, strict=True))
        self._mean_type = diffusion.model_mean_type
        self._eps_norm: Tensor | None = None
        self._steps: list[dict[str, Tensor]] = []

    def wrap(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The same model, whose eps is measured on the way."""

        def measured(x: Tensor, t: Tensor, **kwargs) -> Tensor:
            output = model(x, t, **kwargs)
            eps = output[:, : x.shape[1]]
            if self._mean_type is ModelMeanType.START_X:
                abar = self._abar[int(t[0])]
                eps = (x - abar**0.5 * eps) / (1 - abar) ** 0.5
            self._eps_norm = eps.flatten(1).float().norm(dim=1)
            return output

        return measured

    def observe(self, record: dict[str, Tensor]) -> None:
        """One step of one batch."""
        noise_level = (1 - self._abar[int(record["t"][0])]) ** 0.5
        relative = noise_level * record["guidance_norm"] / self._eps_norm
        self._steps.append({**record, "relative_guidance": relative})

    def take(self) -> dict[str, np.ndarray]:
        """The batch's arrays, float32 [B, steps] each (t: int64), in the order of sampling; then start anew."""
        steps, self._steps = self._steps, []
        arrays = {name: torch.stack([step[name] for step in steps], dim=1).cpu().numpy() for name in FIELDS}
        return {name: a if name == "t" else a.astype(np.float32) for name, a in arrays.items()}
