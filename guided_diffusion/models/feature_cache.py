"""Feature cache: between whole evaluations of a UNet only its outermost blocks run (DeepCache, Ma et al. CVPR 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from guided_diffusion.errors import InputValueError
from guided_diffusion.models.unet import UNetModel

UNIFORM, QUADRATIC = SCHEDULES = ("uniform", "quadratic")


class FeatureCache(nn.Module):
    """model(x_t, t, y=...) that evaluates the whole network at some steps of a run, and its outermost blocks at others.

    There the first D input blocks, the last D output blocks and `out` run; what enters these output blocks from below
    is that of the last whole evaluation (arXiv 2312.00858). The embedding of t and y is always the step's.

    A step is a t: a call at the t of the one before, as in Heun's method, belongs to the same step, and one with
    another shape or above that t is a run's first. An evaluation with a gradient in x_t, the chain rule through the
    model, is always a whole one, and so the true gradient; its features count as the newest. To know t, the host waits
    for it. Each model needs a cache of its own.

    :param network: a `UNetModel`, or one in a `Frozen`.
    :param every: N: of N steps one is a whole evaluation, see `whole_steps`.
    :param depth: D; 1: the first convolution, the last output block and `out`.
    :param schedule: one of SCHEDULES.
    :param num_steps: steps of a run, diffusion.num_timesteps; in a longer one every N-th that follows is whole.
    :raises InputValueError: another network, values out of range.
    """

    def __init__(self, network: nn.Module, num_steps: int, every: int, depth: int = 1, schedule: str = UNIFORM):
        super().__init__()
        unet = network if isinstance(network, UNetModel) else getattr(network, "network", network)
        if not isinstance(unet, UNetModel):
            raise InputValueError(f"--cache_every {every}: found {type(unet).__name__}, expected a UNetModel")
        if every < 1:
            raise InputValueError(f"--cache_every: found {every}, expected at least 1")
        count = len(unet.input_blocks)
        if not 1 <= depth < count:
            raise InputValueError(
                f"--cache_depth: found {depth}, expected 1 to {count - 1}: the diffusion model has {count} input blocks"
            )
        if schedule not in SCHEDULES:
            raise InputValueError(f"--cache_schedule: found {schedule!r}, expected {' or '.join(SCHEDULES)}")
        self.network, self.num_steps, self.every, self.depth = network, num_steps, every, depth
        self._whole = whole_steps(num_steps, every, schedule)
        self.reset()

    def forward(self, x: Tensor, t: Tensor, **kwargs) -> Tensor:
        """Return the network's prediction from x_t [B, C, ...] at t [B]; its other arguments in `kwargs`."""
        self._begin(x, float(t.max()))
        step = self._step
        whole = step in self._whole if step < self.num_steps else step % self.every == 0
        if whole or (torch.is_grad_enabled() and x.requires_grad):
            out, deep = self.network(x, t, depth=self.depth, **kwargs)
            self._deep = deep.detach()
        else:
            out, _ = self.network(x, t, depth=self.depth, deep=self._deep, **kwargs)
        return out

    def _begin(self, x: Tensor, t: float) -> None:
        """Count the step, if it is another one than that of the call before."""
        like = (x.shape, x.dtype, x.device)
        if like != self._like or t > self._t:
            self.reset()
        self._step += t < self._t
        self._like, self._t = like, t

    def reset(self) -> None:
        """Forget the run: the next call is the first of another one."""
        self._deep: Tensor | None = None
        self._like: tuple | None = None
        self._step, self._t = -1, math.inf


def whole_steps(num_steps: int, every: int, schedule: str) -> frozenset[int]:
    """Return the steps of a run, counted from 0, the first, at which the whole network is evaluated.

    uniform: 0, N, 2N, ... quadratic: the different ones among round(c + l |l|), for n = ceil(T / N) numbers l at equal
    distances from -sqrt(c) to below sqrt(T - c), with c = 0.4 T: close together around step c and up to several N
    apart at the ends. The non-uniform 1:N inference of arXiv 2312.00858; its power 2 and center c are our choice.

    :param num_steps: T; every: N.
    """
    if schedule == UNIFORM:
        return frozenset(range(0, num_steps, every))
    count, center = math.ceil(num_steps / every), 0.4 * num_steps
    first, end = -math.sqrt(center), math.sqrt(num_steps - center)
    roots = [first + (end - first) * i / count for i in range(count)]
    return frozenset(min(round(center + root * abs(root)), num_steps - 1) for root in roots)
