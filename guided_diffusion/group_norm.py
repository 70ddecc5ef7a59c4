"""Group normalisation in channels_last on a CPU, with a backward pass that takes whole rows of channels at a time.

PyTorch's own goes through the few channels of one group after another there: on maps of 32x32 and more it takes two to
four times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE_MAP = 1024  # pixels; on smaller maps PyTorch's own is as fast


def suits(x: Tensor) -> bool:
    """Whether `group_norm` is the faster one for x [B, C, H, W] and its gradient.

    Not for a batch of one image: the layout of an axis of length one is anything, which PyTorch's own minds.
    """
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dim() == 4
        and min(x.shape) > 1
        and x.shape[2] * x.shape[3] >= _LARGE_MAP
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `torch.nn.functional.group_norm`, for float32 or float64 x [B, C, H, W] that `suits`. Differentiable once."""
    return _GroupNorm.apply(x, groups, weight, bias, eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        out, mean_BG, rstd_BG = torch.native_group_norm(
            x, weight, bias, batch, channels, height * width, groups, eps
        )
        ctx.save_for_backward(x, weight, mean_BG, rstd_BG)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_BG, rstd_BG = ctx.saved_tensors
        batch, channels, height, width = x.shape
        groups = mean_BG.shape[1]
        x_BLC, gradient_BLC = (_rows(values) for values in (x, gradient))

        # With g the gradient and z = (x - mean) * rstd: sums of g and of g * z over the pixels of each channel.
        sum_BGC = gradient_BLC.sum(dim=1).view(batch, groups, -1)
        moment_BGC = (gradient_BLC * x_BLC).sum(dim=1).view(batch, groups, -1)
        mean_BG1, rstd_BG1 = mean_BG.unsqueeze(2), rstd_BG.unsqueeze(2)
        moment_BGC = (moment_BGC - mean_BG1 * sum_BGC) * rstd_BG1

        # dx = rstd * (weight * g - mean(weight * g) - z * mean(weight * g * z)), means over a group's pixels.
        weight_GC = weight.view(groups, -1)
        count = height * width * channels // groups
        first_BG1 = (weight_GC * sum_BGC).sum(dim=2, keepdim=True) / count
        second_BG1 = (weight_GC * moment_BGC).sum(dim=2, keepdim=True) / count
        factor_BG1 = -second_BG1 * rstd_BG1.square()
        shift_BG1 = -first_BG1 * rstd_BG1 - mean_BG1 * factor_BG1
        scale_B1C, factor_B1C, shift_B1C = (
            values.expand(batch, groups, channels // groups).reshape(batch, 1, channels)
            for values in (rstd_BG1 * weight_GC, factor_BG1, shift_BG1)
        )
        found = torch.addcmul(shift_B1C, gradient_BLC, scale_B1C).addcmul_(x_BLC, factor_B1C)
        found = found.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return found, None, moment_BGC.sum(dim=0).flatten(), sum_BGC.sum(dim=0).flatten(), None


def _rows(values: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C], without a copy in channels_last."""
    return values.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1, 2)
