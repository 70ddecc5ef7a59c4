"""The guidance in diffusers: a UNet with guidance in its prediction, and our models as its UNets.

Nothing here imports diffusers; what is asked of a scheduler is alphas_cumprod, config and, of DDPM's, variance_type,
timesteps and previous_timestep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.process import per_sample

from .denoiser import EPS, X_0, V, check_prediction, x0_coefficients
from .wrapped import ask

# diffusers' schedulers that draw x_{t-1} from p(x_{t-1} | x_t), and names of what a scheduler takes from its model.
ANCESTRAL = ("DDPMScheduler", "DDPMParallelScheduler")
PREDICTION_TYPES = {"epsilon": EPS, "v_prediction": V, "sample": X_0}


@dataclass
class Prediction:
    """What diffusers' UNets return; `prediction[0]` is the sample, too."""

    sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]


class GuidedUNet(nn.Module):
    """A diffusers UNet that predicts with guidance, for any scheduler and any pipeline that calls unet(x, t).

    eps becomes eps - sqrt(1 - abar) G (Dhariwal & Nichol 2021, Alg. 2): x_0 moves by (1 - abar) / sqrt(abar) G, and
    v by -sqrt((1 - abar) / abar) G. Under DDPM's schedulers this would move the mean by beta / sqrt(alpha) G (derived
    here), so G is first multiplied by variance sqrt(alpha) / beta and the mean moves by variance G, as with a cond_fn.
    The scheduler clips x_0 after guidance, ours before it: they agree where neither clips.

    :param unet: unet(x, t, ..., return_dict) with config, as diffusers has them, or `as_diffusers(model)`.
    :param guidance: guidance(x_t, t, y=...), which sees the unet's x_t: sqrt(abar) x_0 + sqrt(1 - abar) noise.
    :param scheduler: the one that the pipeline steps with: its alphas_cumprod, prediction_type and variance_type count.
    :param y: labels [B] of pipelines that hand on no class_labels; it may be set anew before each batch. A batch that
        is a multiple of it, as with classifier-free guidance, repeats it.
    :raises ValueError: a prediction_type that is not epsilon, v_prediction or sample.
    """

    def __init__(self, unet: Any, guidance: Callable[..., Tensor], scheduler: Any, y: Tensor | None = None):
        super().__init__()
        self.unet, self.guidance, self.scheduler, self.y = unet, guidance, scheduler, y
        prediction_type = scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: found {prediction_type!r}, expected {', '.join(PREDICTION_TYPES)}")
        self.predicts = PREDICTION_TYPES[prediction_type]
        self.moves_mean = any(kind.__name__ in ANCESTRAL for kind in type(scheduler).__mro__)

    @property
    def config(self) -> Any:
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        *args,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> Prediction | tuple[Tensor]:
        """Return the guided prediction, in the unet's shape. Further arguments are the unet's."""
        if class_labels is not None:
            kwargs["class_labels"] = class_labels
        output = self.unet(sample, timestep, *args, return_dict=False, **kwargs)[0]
        labels = self.y if class_labels is None else class_labels
        if labels is not None and len(sample) % len(labels) == 0:
            labels = labels.repeat(len(sample) // len(labels))
        output = self._guided(output, sample, one_per_sample(timestep, sample), labels)
        return Prediction(output) if return_dict else (output,)

    def _guided(self, output: Tensor, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        abar_B = self._abar(t)
        level, slope = x0_coefficients(self.predicts, abar_B, like=x)
        channels = x.shape[1]
        mean, rest = output[:, :channels], output[:, channels:]
        x_0 = (level * x + slope * mean).to(x.dtype)
        if self.scheduler.config.get("clip_sample"):
            limit = self.scheduler.config.get("clip_sample_range", 1.0)
            x_0 = x_0.clamp(-limit, limit)
        told = {"x_0": x_0} | ({} if y is None else {"y": y})
        factor = 1.0
        if self.moves_mean:
            variance, alpha, beta = self._step(t, rest, like=x)
            told["variance"] = variance.expand_as(x).to(x.dtype)
            factor = variance * alpha**0.5 / beta
        shift_of_x_0 = per_sample((1 - abar_B) / abar_B.sqrt(), x) * factor
        guidance = ask(self.guidance, x, t, told)
        return torch.cat([(mean + shift_of_x_0 / slope * guidance).to(output.dtype), rest], dim=1)

    def _abar(self, t: Tensor) -> Tensor:
        """abar [B], float64; between whole timesteps, as Euler's, sigma = sqrt(1 / abar - 1) is interpolated."""
        abar_T = torch.as_tensor(self.scheduler.alphas_cumprod).to(t.device, torch.float64)
        below_B = t.long().clamp(0, len(abar_T) - 1)
        above_B = (below_B + 1).clamp(max=len(abar_T) - 1)
        share_B = (t.double() - below_B).clamp(0, 1)
        sigma_T = (1 / abar_T - 1).sqrt()
        between_B = 1 / (1 + ((1 - share_B) * sigma_T[below_B] + share_B * sigma_T[above_B]) ** 2)
        return torch.where(share_B > 0, between_B, abar_T[below_B])

    def _step(self, t: Tensor, output: Tensor, like: Tensor) -> tuple[Tensor, float, float]:
        """Variance [1 or B, ...] of p(x_{t-1} | x_t), alpha and beta of a DDPM scheduler's step from t to the next one.

        The posterior's variance is 0 in the last step; where its logarithm is wanted, that of the step before counts.
        """
        now = int(t[0])
        small, alpha, beta = self._posterior(now)
        kind = self.scheduler.variance_type
        if kind == "learned":
            return output.double(), alpha, beta
        if kind == "learned_range":
            if small == 0:
                timesteps = torch.as_tensor(self.scheduler.timesteps).tolist()
                small = self._posterior(timesteps[-2] if len(timesteps) > 1 else now)[0] or beta
            fraction = (output.double() + 1) / 2
            return (fraction * math.log(beta) + (1 - fraction) * math.log(small)).exp(), alpha, beta
        variance = beta if kind in ("fixed_large", "fixed_large_log") else small
        return torch.full([1] * like.dim(), variance, dtype=torch.float64, device=like.device), alpha, beta

    def _posterior(self, t: int) -> tuple[float, float, float]:
        before = int(self.scheduler.previous_timestep(t))
        abar_T = self.scheduler.alphas_cumprod
        abar, abar_before = float(abar_T[t]), float(abar_T[before]) if before >= 0 else 1.0
        beta = 1 - abar / abar_before
        return beta * (1 - abar_before) / (1 - abar), abar / abar_before, beta


class AsDiffusers(nn.Module):
    """A model(x_t, t, y=...) under the interface of diffusers' UNets. See `as_diffusers`."""

    def __init__(self, model: nn.Module, image_size: int, channels: int, keep_variance: bool, y: Tensor | None):
        super().__init__()
        self.model, self.channels, self.keep_variance, self.y = model, channels, keep_variance, y
        outputs = 2 * channels if keep_variance else channels
        self.config = SimpleNamespace(sample_size=image_size, in_channels=channels, out_channels=outputs)

    @property
    def dtype(self) -> torch.dtype:
        """float32: what the model takes and returns, whatever it computes in."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Prediction | tuple[Tensor]:
        """Return the prediction [B, C or 2C, ...] for x_t at a timestep, one for all or one each [B]."""
        t = one_per_sample(timestep, sample)
        labels = self.y if class_labels is None else class_labels
        output = self.model(sample, t) if labels is None else self.model(sample, t, y=labels)
        output = output if self.keep_variance else output[:, : self.channels]
        return Prediction(output) if return_dict else (output,)


def as_diffusers(
    model: nn.Module,
    image_size: int | None = None,
    channels: int = 3,
    *,
    keep_variance: bool = False,
    y: Tensor | None = None,
) -> AsDiffusers:
    """Return a model of this code, such as a published ADM checkpoint, as a UNet for diffusers' schedulers.

    :param model: model(x_t, t) or, of a conditional one, model(x_t, t, y=labels).
    :param image_size: none: of the model's own config (ValueError where there is none).
    :param keep_variance: keep a learned variance, for DDPMScheduler(variance_type="learned_range"); other schedulers
        want the first `channels` of the prediction alone.
    :param y: labels [B] where the pipeline hands on no class_labels.
    """
    size = image_size or getattr(getattr(model, "config", None), "image_size", None)
    if size is None:
        raise ValueError("image_size: found none, nor a config of the model, expected a number")
    return AsDiffusers(model, size, channels, keep_variance, y)


def scheduler_options(betas, predicts: str = EPS, learned_variance: bool = False) -> dict[str, Any]:
    """Return the arguments that make a diffusers scheduler run a process of this code.

    :param betas: of the original process [T], float64; predicts: see `denoiser.PREDICTIONS`.
    :param learned_variance: the model's variance is kept: for DDPMScheduler.
    """
    check_prediction(predicts)
    named = {ours: theirs for theirs, ours in PREDICTION_TYPES.items()}
    options = {"trained_betas": betas, "prediction_type": named[predicts], "num_train_timesteps": len(betas)}
    return options | ({"variance_type": "learned_range"} if learned_variance else {})
