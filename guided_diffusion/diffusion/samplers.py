"""Samplers as plain functions: one step each, and one loop for all of them.

A step takes (diffusion, model, x_t, t, ...) and returns {"sample": x_{t-1}, "pred_xstart": guess of x_0}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from guided_diffusion.diffusion.enums import ModelMeanType
from guided_diffusion.diffusion.process import WANTS, DiffusionProcess, per_sample


@dataclass(frozen=True)
class StepOutput:
    """Results of one step of a sampling loop from x_t. Reading them does not make the host wait.

    Where a step evaluates network or guidance more than once, it is the first evaluation of each, but for `peaks`.

    :param x_t: [B, C, ...], as the network saw it (Strang's, half a kick from where the guidance did); model_output:
        what the network returned, with its variance if it learned one.
    :param pred_xstart: x_0 as the step returned it: guided, but by DDPM, whose guidance shifts the mean alone.
    :param guidance: what the cond_fn returned, None without one; logits: its `logits`, None if it has none; peaks: its
        `peaks`, which are numbers [B] by place, not finite where a sample's values at this place are not.
    :param further_outputs: what the network returned at the step's further evaluations.
    """

    diffusion: DiffusionProcess
    t: int
    x_t: Tensor
    model_output: Tensor
    pred_xstart: Tensor
    guidance: Tensor | None = None
    logits: Tensor | None = None
    peaks: Mapping[str, Tensor] = field(default_factory=dict)
    further_outputs: Sequence[Tensor] = ()

    @property
    def eps(self) -> Tensor:
        """The noise that the network found in x_t, before any guidance or clamping."""
        if self.diffusion.model_mean_type is ModelMeanType.EPSILON:
            return self._mean
        abar = float(self.diffusion.alphas_cumprod[self.t])
        return (self.x_t - abar**0.5 * self.unguided_xstart) / (1 - abar) ** 0.5

    @property
    def unguided_xstart(self) -> Tensor:
        """The x_0 that the network predicts from x_t, before any guidance or clamping."""
        kind, abar = self.diffusion.model_mean_type, float(self.diffusion.alphas_cumprod[self.t])
        if kind is ModelMeanType.EPSILON:
            return (self.x_t - (1 - abar) ** 0.5 * self._mean) / abar**0.5
        if kind is ModelMeanType.START_X:
            return self._mean
        share_start = float(self.diffusion.posterior_mean_coef1[self.t])
        return (self._mean - float(self.diffusion.posterior_mean_coef2[self.t]) * self.x_t) / share_start

    @property
    def _mean(self) -> Tensor:
        return self.model_output[:, : self.x_t.shape[1]]


Callback = Callable[[int, int, StepOutput], None]


def guided_prediction(
    diffusion: DiffusionProcess,
    model: Callable,
    x: Tensor,
    t: Tensor,
    cond_fn: Callable | None = None,
    model_kwargs: dict | None = None,
    **refining,
) -> dict[str, Tensor]:
    """Return `p_mean_variance`, with eps shifted by the guidance where there is a cond_fn (`condition_score`).

    :param refining: clip_denoised and denoised_fn, see `p_mean_variance`, which says what is raised. A denoised_fn
        with the attribute of_guided is applied to x_0 after the guidance, and then nothing is clamped before it.
    """
    denoised_fn = refining.get("denoised_fn")
    if cond_fn is not None and getattr(denoised_fn, "of_guided", False):
        out = diffusion.p_mean_variance(model, x, t, clip_denoised=False, model_kwargs=model_kwargs)
        return diffusion.condition_score(cond_fn, out, x, t, model_kwargs, refine=denoised_fn)
    out = diffusion.p_mean_variance(model, x, t, model_kwargs=model_kwargs, **refining)
    return out if cond_fn is None else diffusion.condition_score(cond_fn, out, x, t, model_kwargs=model_kwargs)


def ddpm_step(
    diffusion: DiffusionProcess,
    model: Callable,
    x: Tensor,
    t: Tensor,
    cond_fn: Callable | None = None,
    model_kwargs: dict | None = None,
    noise_fn: Callable[[Tensor], Tensor] = torch.randn_like,
    **refining,
) -> dict[str, Tensor]:
    """Draw x_{t-1} from p(x_{t-1} | x_t), its mean shifted by the guidance (Eq. 8)."""
    out = diffusion.p_mean_variance(model, x, t, model_kwargs=model_kwargs, **refining)
    noise = noise_fn(x)
    mean = out["mean"]
    if cond_fn is not None:
        mean = diffusion.condition_mean(cond_fn, out, x, t, model_kwargs=model_kwargs)
    sample = mean + _not_last(t, x) * torch.exp(0.5 * out["log_variance"]) * noise
    return {"sample": sample, "pred_xstart": out["pred_xstart"]}


def ddim_step(
    diffusion: DiffusionProcess,
    model: Callable,
    x: Tensor,
    t: Tensor,
    noise_fn: Callable[[Tensor], Tensor] = torch.randn_like,
    eta: float = 0.0,
    **options,
) -> dict[str, Tensor]:
    """One step of Song et al. 2021 (Eq. 4), eps shifted by the guidance.

    :param eta: share of DDPM's noise that is kept, 0 (deterministic) to 1. The noise is drawn in any case,
        so that the random stream does not depend on eta.
    :param options: see `guided_prediction`.
    """
    out = guided_prediction(diffusion, model, x, t, **options)
    eps = diffusion.predict_eps(x, t, out["pred_xstart"])
    abar = diffusion.at("alphas_cumprod", t, x)
    abar_prev = diffusion.at("alphas_cumprod_prev", t, x)
    sigma = eta * torch.sqrt((1 - abar_prev) / (1 - abar)) * torch.sqrt(1 - abar / abar_prev)
    noise = noise_fn(x)
    mean = out["pred_xstart"] * torch.sqrt(abar_prev) + torch.sqrt(1 - abar_prev - sigma**2) * eps
    return {"sample": mean + _not_last(t, x) * sigma * noise, "pred_xstart": out["pred_xstart"]}


def ddim_reverse_step(
    diffusion: DiffusionProcess, model: Callable, x: Tensor, t: Tensor, eta: float = 0.0, **options
) -> dict[str, Tensor]:
    """The deterministic DDIM step backwards: x_{t+1} from x_t. AssertionError unless eta is 0.

    :param options: see `guided_prediction`.
    """
    assert eta == 0.0, f"eta: found {eta}, expected 0 (only the deterministic path can be reversed)"
    out = guided_prediction(diffusion, model, x, t, **options)
    eps = diffusion.predict_eps(x, t, out["pred_xstart"])
    abar_next = diffusion.at("alphas_cumprod_next", t, x)
    sample = out["pred_xstart"] * torch.sqrt(abar_next) + torch.sqrt(1 - abar_next) * eps
    return {"sample": sample, "pred_xstart": out["pred_xstart"]}


def sample_progressively(
    diffusion: DiffusionProcess,
    step: Callable[..., dict[str, Tensor]],
    model: Callable,
    shape: Sequence[int],
    noise: Tensor | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    cond_fn: Callable[..., Tensor] | None = None,
    **step_options,
) -> Iterator[dict[str, Tensor]]:
    """Run `step` from t = T - 1 down to 0, yielding its result each time, without gradients.

    :param shape: [B, C, ...] of the samples; noise: x_T, drawn (one randn) when not given.
    :param device: where to sample; default the noise's, else the model's.
    :param callback: called with (number of the step from 0, t, its `StepOutput`) after each step.
    :param cond_fn, step_options: handed to `step`; the latter such as model_kwargs, noise_fn, eta.
    """
    if device is None:
        device = noise.device if noise is not None else next(model.parameters()).device
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape: found {shape!r}, expected a tuple or list")
    x = torch.randn(*shape, device=device) if noise is None else noise
    timesteps = range(diffusion.num_timesteps - 1, -1, -1)
    if progress:
        from tqdm.auto import tqdm

        timesteps = tqdm(timesteps, unit="step")
    of_model, of_guidance = [], []  # what a step's evaluations saw and returned
    if callback is not None:
        model = _noting(model, of_model)
    guide = cond_fn if callback is None or cond_fn is None else _noting(cond_fn, of_guidance)
    for number, t in enumerate(timesteps):
        with torch.no_grad():
            result = step(diffusion, model, x, torch.full((shape[0],), t, device=device), cond_fn=guide, **step_options)
        if callback is not None:
            callback(number, t, _step_output(diffusion, t, result["pred_xstart"], of_model, of_guidance))
            of_model.clear()
            of_guidance.clear()
        yield result
        x = result["sample"]


class _Evaluation(NamedTuple):
    """One call of a network or a guidance."""

    x: Tensor
    returned: Tensor
    logits: Tensor | None
    peaks: Mapping[str, Tensor]


def _step_output(
    diffusion: DiffusionProcess,
    t: int,
    pred_xstart: Tensor,
    of_model: Sequence[_Evaluation],
    of_guidance: Sequence[_Evaluation],
) -> StepOutput:
    first, *further = of_model
    peaks: dict[str, Tensor] = {}
    for evaluation in of_guidance:
        peaks |= {
            place: torch.maximum(peaks[place], size_B) if place in peaks else size_B
            for place, size_B in evaluation.peaks.items()
        }
    return StepOutput(
        diffusion,
        t,
        first.x,
        first.returned,
        pred_xstart,
        guidance=of_guidance[0].returned if of_guidance else None,
        logits=of_guidance[0].logits if of_guidance else None,
        peaks=peaks,
        further_outputs=[evaluation.returned for evaluation in further],
    )


def _noting(function: Callable[..., Tensor], evaluations: list[_Evaluation]) -> Callable[..., Tensor]:
    def noting(x: Tensor, *args, **kwargs) -> Tensor:
        returned = function(x, *args, **kwargs)
        logits, peaks = getattr(function, "logits", None), getattr(function, "peaks", {})
        evaluations.append(_Evaluation(x, returned, logits, peaks))
        return returned

    for attribute in WANTS.values():
        setattr(noting, attribute, getattr(function, attribute, False))
    return noting


def together(callbacks: Sequence[Callback], after: Callable[[], None]) -> Callback:
    """Return one callback that calls several, then `after`, which takes no arguments."""

    def call(step: int, t: int, output: StepOutput) -> None:
        for callback in callbacks:
            callback(step, t, output)
        after()

    return call


def last(results: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the final item of a progressive loop."""
    return deque(results, maxlen=1).pop()


def _not_last(t: Tensor, like: Tensor) -> Tensor:
    """1 where noise is still added, 0 at t = 0, as [B, 1, ...]."""
    return per_sample((t != 0).float(), like)
