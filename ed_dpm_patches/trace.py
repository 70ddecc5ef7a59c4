"""A record of guidance during sampling: per sample and step, how certain the classifier was and what it did."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion.gaussian import GaussianDiffusion
from guided_diffusion.diffusion.samplers import StepOutput

MEASURES = ("entropy_ratio", "p_y", "grad_norm", "scale", "relative_guidance")
MAPS = ("x_t", "pred_xstart", "guidance")


class Trace:
    """Collects the observations of a `ClassifierGuidance` together with what the model predicted.

    Use `observe` as the guidance's observer and `step` as the callback of a sampling loop; where a step evaluates the
    guidance more than once (Heun's), the first counts. `begin` each batch, then `take` its arrays. Nothing waits for
    the device before `take`.

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
        taken = [] if diffusion is None else diffusion.model_timesteps.timesteps[::-1]
        self._timesteps = np.array(taken, dtype=np.int64)
        self._samples = samples
        self._map_steps = np.unique(np.round(np.linspace(0, len(self._timesteps) - 1, maps)).astype(np.int64))
        self.begin()

    def begin(self, first: int = 0) -> None:
        """Begin a batch, whose first sample is number `first` of the run; what was recorded before is dropped."""
        self._rows = slice(0, max(self._samples - first, 0))  # of the batch, those whose images are kept
        self._records: list[dict[str, Tensor]] = []
        self._maps: list[dict[str, Tensor]] = []
        self._guidance: Tensor | None = None  # of this step's first evaluation

    def observe(self, record: dict[str, Tensor]) -> None:
        """Note what guidance did at one step of one batch."""
        self._records.append({name: record[name] for name in ("t", "y", "guidance_norm", *MEASURES[:-1])})
        self._guidance = record["guidance"] if self._guidance is None else self._guidance

    def step(self, step: int, t: int, output: StepOutput) -> None:
        """Note what the model did at one step, of whose observations the first counts. ValueError if it has none."""
        if len(self._records) <= step:
            raise ValueError(f"trace: found {len(self._records)} observed steps, expected {step + 1}")
        del self._records[step + 1 :]
        noise_level = (1 - float(output.diffusion.alphas_cumprod[t])) ** 0.5
        relative_B = noise_level * self._records[step]["guidance_norm"] / output.eps.flatten(1).float().norm(dim=1)
        self._records[step]["relative_guidance"] = relative_B
        if self._samples and step in self._map_steps:
            # Copies of the rows, so that the whole batch is not kept alive.
            kept = (output.x_t, output.unguided_xstart.clamp(-1, 1), self._guidance)
            self._maps.append({name: values[self._rows].clone() for name, values in zip(MAPS, kept, strict=True)})
        self._guidance = None

    def take(self) -> dict[str, np.ndarray]:
        """The batch's arrays; then start anew. B samples, S steps in the order of sampling.

        - t: int64 [B, S], timesteps of the original process; y: int64 [B];
        - entropy_ratio, p_y, grad_norm, scale, relative_guidance: float32 [B, S];
        - if `samples` is not 0, of the n of the batch's samples that are among them (n may be 0), at k steps:
          map_t int64 [n, k]; map_x_t, map_pred_xstart, map_guidance float32 [n, k, C, H, W]. The guidance is
          what the cond_fn returned, the classifier scale inside.

        With a classifier scale of 0 there is no gradient: grad_norm, scale, relative_guidance and map_guidance
        are 0. ValueError unless every step was observed.
        """
        records, maps = self._records, self._maps
        if not records or len(self._timesteps) not in (0, len(records)):
            raise ValueError(f"trace: found {len(records)} observed steps, expected {len(self._timesteps)}")
        self.begin()
        arrays = {name: _stacked(records, name) for name in MEASURES if name in records[0]}
        y = records[0]["y"].cpu().numpy().astype(np.int64)
        t = np.tile(self._timesteps, (len(y), 1)) if len(self._timesteps) else _stacked(records, "t").astype(np.int64)
        arrays |= {"t": t, "y": y}
        if maps:
            arrays |= {f"map_{name}": _stacked(maps, name) for name in MAPS}
            arrays["map_t"] = np.tile(self._timesteps[self._map_steps], (len(arrays["map_x_t"]), 1))
        return arrays


def _stacked(steps: list[dict[str, Tensor]], name: str) -> np.ndarray:
    """float32, samples on the first axis and steps on the second."""
    return torch.stack([step[name] for step in steps], dim=1).float().cpu().numpy()
