"""Guidance by two diffusion models: classifier-free guidance and autoguidance, as a model for any sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ed_dpm_patches.guidance import one_per_sample
from guided_diffusion.diffusion.process import per_sample

from .sums import Interval, Weight


class Projection(Protocol):
    """What changes the difference of the two models before it is scaled: see `projection.AdaptiveProjection`."""

    def __call__(self, strong: Tensor, difference: Tensor, x: Tensor, t: Tensor) -> Tensor: ...


class Pair:
    """model(x_t, t, **kwargs) = weak + w (strong - weak), the variance (further channels) from strong.

    | pair | strong, weak | source |
    |---|---|---|
    | classifier-free guidance | conditional, unconditional | Ho & Salimans 2022, whose own weight is w - 1 |
    | autoguidance | a model, a smaller or less trained one, both with the same labels | Karras et al. 2024 |

    Both models predict the same (eps, v or x_0). w = 1 is strong alone, bitwise, and weak is then not called. One
    evaluation of each model a step, in one call where both are one network (`with_null_label`). A cond_fn, EDS's or
    another, acts on the result as on any model's; a Pair may be strong or weak in another Pair.

    :param strong, weak: model(x_t, t, **kwargs) -> [B, C or more, ...]; both get the same kwargs: wrap an
        unconditional network in `without_labels`.
    :param scale: w, a finite number or a function of t [B] -> [B].
    :param interval: (lowest, highest) original t, ends included, at which there is guidance (Kynkaanniemi et al. 2024);
        elsewhere w = 1. To know it, the host waits for t. None: everywhere.
    :param projection: what is done to the difference first, such as `AdaptiveProjection`; its x_t is the models'.
    :raises ValueError: an interval the wrong way round, a scale that is not finite.
    """

    def __init__(
        self,
        strong: Callable[..., Tensor],
        weak: Callable[..., Tensor],
        scale: Weight = 1.0,
        interval: Interval | None = None,
        projection: Projection | None = None,
    ):
        if not callable(scale) and not math.isfinite(scale):
            raise ValueError(f"scale: found {scale}, expected a finite number or a function of t")
        if interval is not None and not interval[0] <= interval[1]:
            raise ValueError(f"interval: found {tuple(interval)}, expected (lowest, highest)")
        self.strong, self.weak, self.scale, self.interval, self.projection = strong, weak, scale, interval, projection

    def __call__(self, x: Tensor, t: Tensor, **kwargs: object) -> Tensor:
        """Return the guided prediction, shaped as strong's."""
        t_B = one_per_sample(t, x)
        lowest, highest = self.interval or (-math.inf, math.inf)
        inside_B = (t_B >= lowest) & (t_B <= highest)
        if self.scale == 1 or (self.interval is not None and not bool(inside_B.any())):
            return self.strong(x, t, **kwargs)
        strong, weak = self._both(x, t, kwargs)
        channels = x.shape[1]
        mean, variance = strong[:, :channels], strong[:, channels:]
        difference = mean - weak[:, :channels]
        if self.projection is not None:
            difference = self.projection(mean, difference, x, t_B)
        scale_B = torch.as_tensor(self.scale(t_B) if callable(self.scale) else self.scale, device=x.device)
        extra_B = torch.where(inside_B, scale_B.expand(len(x)).double() - 1, 0.0).to(mean.dtype)
        mean = mean + per_sample(extra_B, x) * difference
        return torch.cat([mean, variance], dim=1)

    def _both(self, x: Tensor, t: Tensor, kwargs: dict[str, object]) -> tuple[Tensor, Tensor]:
        return self.strong(x, t, **kwargs), self.weak(x, t, **kwargs)

    def reset(self) -> None:
        """Forget the batch: the next call is the first of another one."""
        if hasattr(self.projection, "reset"):
            self.projection.reset()


class _OneNetwork(Pair):
    def __init__(self, model: Callable[..., Tensor], null_label: int, **options):
        super().__init__(model, lambda x, t, y: model(x, t, y=torch.full_like(y, null_label)), **options)
        self.null_label = null_label

    def _both(self, x: Tensor, t: Tensor, kwargs: dict[str, object]) -> tuple[Tensor, Tensor]:
        y = kwargs["y"]
        labels = torch.cat([y, torch.full_like(y, self.null_label)])
        t_B = one_per_sample(t, x)
        return self.strong(torch.cat([x, x]), torch.cat([t_B, t_B]), y=labels).chunk(2)


def with_null_label(model: Callable[..., Tensor], null_label: int, scale: Weight = 1.0, **options) -> Pair:
    """Return classifier-free guidance by one network that was trained with a label for "none", in one batched call.

    :param model: model(x_t, t, y=[B]); null_label: that label; `options`: interval, projection of `Pair`.
    """
    return _OneNetwork(model, null_label, scale=scale, **options)


def without_labels(model: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return model(x_t, t) as a model that is given labels y and does not look at them."""
    return lambda x, t, y=None, **kwargs: model(x, t, **kwargs)
