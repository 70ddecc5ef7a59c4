"""A record of guidance during sampling: per sample and step, how certain the classifier was and what it did."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.gaussian_diffusion import GaussianDiffusion, ModelMeanType

MEASURES = ("entropy_ratio", "p_y", "grad_norm", "scale", "relative_guidance")
MAPS = ("x_t", "pred_xstart", "guidance")


class Trace:
    """Collects the observations of a `ClassifierGuidance` together with what the model predicted.

    Use `observe` as the guidance's observer, sample each batch with `wrap(model)` by one of the process's own
    loops (DDPM or DDIM, which take every step once), then `take` its arrays. Nothing waits for the device
    before `take`.

    relative_guidance is sqrt(1 - abar_t) * |guidance| / |eps|: the shift of eps that the guidance makes
    (Alg. 1, DDIM), relative to the model's eps. For the first `samples` samples of the run, images are kept at
    some steps (the paper's Fig. 1 and 4): x_t, the x_0 that the model predicts from it before any guidance,
    clamped to [-1, 1] whatever the sampler does, and the guidance.

    Without a process it serves any sampler: `observe` alone, one call a step; no relative_guidance, no maps.

    :param diffusion: the process that is sampled from, respaced or not, of any mean type; None: another sampler.
    :param samples: of how many samples images are kept, counted over the whole run; 0: of none.
    :param maps: at how many steps, evenly spaced from the first to the last (more than there are: at every step).
    """

    def __init__(self, diffusion: GaussianDiffusion | None = None, samples: int = 0, maps: int = 8):
        if diffusion is None and samples:
            raise ValueError(f"samples: found {samples} without a process, expected 0; it says what x_0 is")
        count = 0 if diffusion is None else diffusion.num_timesteps
        original = getattr(diffusion, "timestep_map", range(count))
        self._diffusion, self._samples = diffusion, samples
        self._timesteps = np.array(original, dtype=np.int64)[::-1]  # in the order of sampling
        self._map_steps = np.unique(np.round(np.linspace(0, count - 1, maps)).astype(np.int64))
        self._begin(first=0)

    def _begin(self, first: int) -> None:
        self._rows = slice(0, max(self._samples - first, 0))  # of the batch, those whose images are kept
        self._pending: dict[str, Tensor] = {}  # what the model's call leaves for the observation that follows
        self._steps: list[dict[str, Tensor]] = []
        self._maps: list[dict[str, Tensor]] = []

    def wrap(
        self, model: Callable[..., Tensor], first: int = 0, watch: Callable[..., object] | None = None
    ) -> Callable[..., Tensor]:
        """The same model for one batch, measured on the way; what was recorded before is dropped.

        :param first: number of the batch's first sample in the run.
        :param watch: the observed guidance, where it has no say in the sampling: called at every x_t, its
            result unused. The trace then tells how certain the classifier is of unguided samples.
        """
        self._begin(first)

        def measured(x: Tensor, t: Tensor, **kwargs) -> Tensor:
            output = model(x, t, **kwargs)
            eps, x_start = self._predictions(x, output[:, : x.shape[1]])
            self._pending = {"eps_norm": eps.flatten(1).float().norm(dim=1)}
            if self._samples and len(self._steps) in self._map_steps:
                # Copies of the rows, so that the whole batch is not kept alive.
                self._pending |= {"x_t": x[self._rows].clone(), "pred_xstart": x_start.clamp(-1, 1)}
            if watch is not None:
                watch(x, t, **kwargs)
            return output

        return measured

    def _predictions(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """The model's eps [B, C, H, W] and, of the samples whose images are kept, its x_0."""
        # Counted, not read from t: that would wait for the device.
        index = self._diffusion.num_timesteps - 1 - len(self._steps)
        abar = float(self._diffusion.alphas_cumprod[index])
        if self._diffusion.model_mean_type is ModelMeanType.EPSILON:
            kept = output[self._rows]
            return output, (x[self._rows] - (1 - abar) ** 0.5 * kept) / abar**0.5
        if self._diffusion.model_mean_type is ModelMeanType.PREVIOUS_X:
            share_start = float(self._diffusion.posterior_mean_coef1[index])
            output = (output - float(self._diffusion.posterior_mean_coef2[index]) * x) / share_start
        return (x - abar**0.5 * output) / (1 - abar) ** 0.5, output[self._rows]

    def observe(self, record: dict[str, Tensor]) -> None:
        """One step of one batch, after the model's call at the same x_t."""
        step, pending = len(self._steps), self._pending
        if self._diffusion is None:
            self._steps.append({name: record[name] for name in ("t", "y", *MEASURES[:-1])})
            return
        noise_level = (1 - float(self._diffusion.alphas_cumprod[-1 - step])) ** 0.5
        relative = noise_level * record["guidance_norm"] / pending.pop("eps_norm")
        measures = {name: record[name] for name in MEASURES if name in record}
        self._steps.append({"y": record["y"], **measures, "relative_guidance": relative})
        if pending:
            self._maps.append({**pending, "guidance": record["guidance"][self._rows].clone()})

    def take(self) -> dict[str, np.ndarray]:
        """The batch's arrays; then start anew. B samples, S steps in the order of sampling.

        - t: int64 [B, S], timesteps of the original process; y: int64 [B];
        - entropy_ratio, p_y, grad_norm, scale, relative_guidance: float32 [B, S];
        - if `samples` is not 0, of the n of the batch's samples that are among them (n may be 0), at k steps:
          map_t int64 [n, k]; map_x_t, map_pred_xstart, map_guidance float32 [n, k, C, H, W]. The guidance is
          what the cond_fn returned, the classifier scale inside.

        With a classifier scale of 0 there is no gradient: grad_norm, scale, relative_guidance and map_guidance
        are 0. ValueError unless every step was observed once.
        """
        steps, maps = self._steps, self._maps
        if self._diffusion is None and steps:
            self._begin(first=0)
            t_BS, y_B = torch.stack([step["t"] for step in steps], dim=1), steps[0]["y"]
            arrays = {name: values.cpu().numpy().astype(np.int64) for name, values in (("t", t_BS), ("y", y_B))}
            return arrays | {name: _stacked(steps, name) for name in MEASURES[:-1]}
        if len(steps) != len(self._timesteps) or not steps:
            raise ValueError(f"trace: found {len(steps)} observed steps, expected {len(self._timesteps)}")
        self._begin(first=0)
        y = steps[0]["y"].cpu().numpy().astype(np.int64)
        arrays = {"t": np.tile(self._timesteps, (len(y), 1)), "y": y}
        arrays |= {name: _stacked(steps, name) for name in MEASURES}
        if maps:
            arrays |= {f"map_{name}": _stacked(maps, name) for name in MAPS}
            arrays["map_t"] = np.tile(self._timesteps[self._map_steps], (len(arrays["map_x_t"]), 1))
        return arrays


def _stacked(steps: list[dict[str, Tensor]], name: str) -> np.ndarray:
    """float32, samples on the first axis and steps on the second."""
    return torch.stack([step[name] for step in steps], dim=1).float().cpu().numpy()
