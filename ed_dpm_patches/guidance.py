"""Classifier guidance as a `cond_fn` for any sampler: the rule's scaled direction pulled back to x_t."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guided_diffusion.diffusion.nonfinite import peak
from guided_diffusion.diffusion.process import per_sample
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.models.any_classifier import AnyClassifier
from guided_diffusion.models.inference import Frozen

from .rules import LARGEST_LOG, ConstantRule, GuidanceRule, unit_direction
from .scale_stats import ScaleReport
from .softmax import Softmax

# Directions enter the backward pass with this L1 norm: large enough that float16 gradients stay normal
# numbers on the way down, small enough that they do not overflow. A power of two, so float32 is exact.
BACKWARD_NORM = 2.0**8

# No element of the guidance exceeds this. x_t is of order 1: a sample pushed this far is lost in any case,
# but it stays finite, through the sampler and through float32 and bfloat16 networks.
LARGEST_GUIDANCE = 1e12

Table = Tensor | np.ndarray | Sequence[float]


class ClassifierGuidance:
    """Gradient of a scaled log p(y | x_t), in the form that samplers call as cond_fn(x_t, t, y=...).

    Samplers that know no cond_fn use `guide_eps` or `guide_denoised`.

    :param classifier: any classifier(x_t [B, ...], t [B]) -> logits [B, K], differentiable in x_t; see `AnyClassifier`.
    :param rule: see `rules`; or a function (logits [B, K], y, t) -> v [B, K], whose scale and gamma count as 1.
    :param cap: largest L1 norm of the guidance on the logits, in units of gamma * log K (`--eds_cap`); None: no cap,
        the paper's formula. Samples above it keep their direction.
    :param interval: (lowest, highest) t, ends included, at which there is guidance (Kynkaanniemi et al. 2024), on
        the original timesteps, which the classifier gets, whatever the respacing. Outside it the classifier is not
        called, unless there is an observer: that then gets the true entropy and p_y, and a scale, gradient norm and
        guidance of 0. Without an observer the host waits for t.
    :param observer: called with a dict of per-sample tensors [B] after every evaluation: t, y,
        entropy_ratio (H / log K), p_y, scale (s), grad_norm (L2 of the rule's direction pulled back to x_t: of the
        gradient of log p_y), guidance_norm, and with guidance itself, shaped like x and not copied.

    `report` holds statistics of the scale. Samples whose guidance is not finite (a classifier that returned inf or nan)
    go unguided in that step and are counted. Of the last call, None and {} where it did not ask the classifier:
    `logits` [B, K], and `peaks`, the largest magnitudes [B] of "classifier logits" and "guidance gradient".
    """

    def __init__(
        self,
        classifier: Callable[..., Any],
        rule: GuidanceRule | Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        cap: float | None = None,
        interval: tuple[float, float] | None = None,
        observer: Callable[[dict[str, Tensor]], None] | None = None,
    ):
        if cap is not None and not cap > 0:
            raise ValueError(f"cap: found {cap}, expected a positive number or None")
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"interval: found {tuple(interval)}, expected (lowest, highest)")
        self.classifier = classifier if isinstance(classifier, Frozen) else AnyClassifier(classifier)
        self.rule, self.cap, self.interval, self.observer = rule, cap, interval, observer
        self._scale_rule = rule if isinstance(rule, GuidanceRule) else ConstantRule()
        self.logits: Tensor | None = None
        self.peaks: dict[str, Tensor] = {}
        self.scale: Tensor | None = None
        self.report = ScaleReport()
        self._checked_y: Any = None

    def __call__(self, x: Tensor, t: Any, y: Any = None, **_: object) -> Tensor:
        """Return the guidance, shaped and typed like x (the arguments that only the diffusion model wants are ignored).

        t and y are [B], or one number for all samples. ValueError when y is missing, not whole numbers, or not a class.
        """
        if y is None:
            raise ValueError("y: missing; guidance needs a label for every sample (model_kwargs={'y': ...})")
        with torch.inference_mode(False), torch.no_grad():
            x, t_B, y_B = x.detach(), *(one_per_sample(value, x) for value in (t, y))
            # Autograd keeps no tensor that was made in inference mode.
            x, t_B, y_B = (value.clone() if value.is_inference() else value for value in (x, t_B, y_B))
            guidance = self._guide(x, t_B, y_B, checked=y is self._checked_y)
        self._checked_y = y
        return guidance

    def guide_eps(self, eps: Tensor, x: Tensor, t: Any, y: Any, alphas_cumprod: Table) -> Tensor:
        """Return the predicted noise with guidance, eps - sqrt(1 - abar_t) G(x, t), for samplers that work with eps.

        :param eps: [B, C, ...] as x, or with more channels (a learned variance), which are returned as they are.
        :param alphas_cumprod: abar of every timestep of the classifier's process [T], in which t counts.
        """
        abar_T = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device=x.device)
        abar_B = abar_T[one_per_sample(t, x).long()]
        noise, rest = eps[:, : x.shape[1]], eps[:, x.shape[1] :]
        shift = per_sample((1 - abar_B).sqrt(), x) * self(x, t, y)
        return torch.cat([noise - shift.to(eps.dtype), rest], dim=1)

    def guide_denoised(
        self, denoised: Tensor, x: Tensor, sigma: Any, y: Any, alphas_cumprod: Table | None = None
    ) -> Tensor:
        """Return a denoiser's D(x; sigma) with guidance, for samplers on x = x_0 + sigma * noise (Karras et al. 2022).

        The classifier was trained on sqrt(abar) x_0 + sqrt(1 - abar) noise. It gets x / sqrt(1 + sigma^2), at the
        timestep whose noise is nearest, and D becomes D + sigma^2 / sqrt(1 + sigma^2) G.

        :param alphas_cumprod: abar of every timestep of the classifier's process [T]; None: linear betas, T = 1000.
        """
        if alphas_cumprod is None:
            alphas_cumprod = np.cumprod(1 - get_named_beta_schedule("linear", 1000))
        abar_T = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device=x.device)
        log_sigma_T = ((1 - abar_T) / abar_T).log() / 2
        sigma_B = one_per_sample(sigma, x).double()
        t_B = (sigma_B.log()[:, None] - log_sigma_T).abs().argmin(dim=1)
        size_B = (1 + sigma_B**2).sqrt()
        shift = self((x / per_sample(size_B, x)).to(x.dtype), t_B, y) * per_sample(sigma_B**2 / size_B, x)
        return denoised + shift.to(denoised.dtype)

    def _guide(self, x: Tensor, t: Tensor, y: Tensor, checked: bool) -> Tensor:
        self.logits = self.scale = None
        self.peaks = {}
        lowest, highest = self.interval or (-math.inf, math.inf)
        active_B = (t >= lowest) & (t <= highest)
        if self.interval is not None and self.observer is None and not bool(active_B.any()):
            return torch.zeros_like(x)
        with torch.enable_grad():
            x_in = x.detach().requires_grad_(True)
            logits_BK = self.classifier(x_in, t)
        self.logits = logits_BK.detach()
        if not checked and y.numel() and not y.is_meta:  # once for each batch: reading values waits for the device
            _check_labels(y, logits_BK.shape[1])
        largest_logit_B = peak(logits_BK)
        valid_B = largest_logit_B.isfinite()
        steady_BK = torch.where(valid_B[:, None], self.logits, 0.0)

        # A direction of L1 norm 1 goes through the network; its size comes back in float64 afterwards.
        p, rule = Softmax.of(steady_BK), self._scale_rule
        direction = rule.direction(p, y) if rule is self.rule else self.rule(steady_BK, y, t)
        log_norm_B, unit_BK = unit_direction(direction)
        unit_BK = (unit_BK * BACKWARD_NORM).to(logits_BK.dtype)
        with torch.enable_grad():  # a scalar: for anything else autograd loads a symbolic algebra, half a second
            pulled = (logits_BK * unit_BK).sum()
        (gradient,) = torch.autograd.grad(pulled, x_in)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        steepest_B = peak(gradient)
        self.peaks = {"classifier logits": largest_logit_B, "guidance gradient": steepest_B}
        valid_B &= steepest_B.isfinite()
        gradient = torch.where(per_sample(valid_B, gradient), gradient, 0.0)

        # In logarithms: where the classifier is certain, only the product of direction and scale is a float64.
        length_B = grad_norm_B = None
        if rule.needs_grad_norm or self.observer is not None:
            length_B = gradient.flatten(1).double().norm(dim=1)
            grad_norm_B = length_B * (log_norm_B.exp() / BACKWARD_NORM)
        log_scale_B = rule.log_scale(p, t, grad_norm_B if rule.needs_grad_norm else None)
        log_scale_B = torch.minimum(log_scale_B, LARGEST_LOG - log_norm_B)
        acts_B = active_B & (rule.gamma > 0)
        capped_B = torch.zeros_like(valid_B)
        if self.cap is not None:
            log_limit_B = math.log(self.cap * math.log(p.num_classes)) - log_norm_B
            capped_B = acts_B & (log_scale_B > log_limit_B)
            log_scale_B = torch.minimum(log_scale_B, log_limit_B)
        self.scale = scale_B = torch.where(acts_B, rule.gamma * log_scale_B.exp(), 0.0)
        size_B = torch.where(acts_B, rule.gamma * (log_scale_B + log_norm_B).exp() / BACKWARD_NORM, 0.0)

        # The floor keeps the factor itself within float32 where the gradient vanishes.
        steepest_B = torch.where(valid_B, steepest_B, 0.0).double().clamp(min=1e-25)
        size_B = torch.minimum(size_B, LARGEST_GUIDANCE / steepest_B)
        guidance = (gradient * per_sample(size_B.to(gradient.dtype), gradient)).to(x.dtype).contiguous()

        self.report.update(scale_B, capped=capped_B, nonfinite=~valid_B, active=active_B)
        if self.observer is not None:
            observed = {"t": t, "y": y, "entropy_ratio": p.entropy_ratio, "p_y": -torch.expm1(p.log_one_minus_p(y))}
            observed |= {"scale": scale_B, "grad_norm": torch.where(scale_B > 0, grad_norm_B, 0.0)}
            self.observer(observed | {"guidance_norm": length_B * size_B, "guidance": guidance})
        return guidance


def _check_labels(y: Tensor, classes: int) -> None:
    lowest, highest = (int(label) for label in y.aminmax())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"y: found labels {lowest} to {highest}, the classifier's are 0 to {classes - 1}")


def one_per_sample(value: Any, x: Tensor) -> Tensor:
    """A number, a list or a tensor as a tensor [B] on x's device; anything with more than one value keeps its shape."""
    values = torch.as_tensor(value, device=x.device)
    return values.reshape(1).expand(len(x)) if values.numel() == 1 else values
