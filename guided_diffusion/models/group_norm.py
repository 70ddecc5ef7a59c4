"""Group normalisation in channels_last that takes whole rows of channels at a time, where PyTorch's own is slow.

On a CPU PyTorch's backward pass goes through the few channels of one group after another: on maps of 32x32 and more it
takes two to four times as long. On CUDA its forward pass copies to the contiguous layout, and the convolution behind it
copies back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LARGE_MAP = 1024  # pixels, on a CPU; on smaller maps PyTorch's own is as fast
_LARGE_BATCH = 2**24  # numbers, on CUDA; for fewer the copies take less than the launches of more kernels


def suits(x: Tensor) -> bool:
    """Whether `group_norm` is the faster one for x [B, C, H, W] and its gradient.

    On a CPU not for a batch of one image: the layout of an axis of length one is anything, which PyTorch's own minds.
    """
    if x.dim() != 4 or torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type == "cuda":
        return min(x.shape[1:]) > 1 and x.numel() >= _LARGE_BATCH
    large = min(x.shape) > 1 and x.shape[2] * x.shape[3] >= _LARGE_MAP
    return large and x.device.type == "cpu" and torch.is_grad_enabled()


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `torch.nn.functional.group_norm`, for float32 or float64 x [B, C, H, W] that `suits`. Differentiable once."""
    return _GroupNorm.apply(x, groups, weight, bias, eps)


def normalise_rows(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output in channels_last, means [B, G] and reciprocal deviations [B, G] of x [B, C, H, W] in channels_last."""
    batch, channels, height, width = x.shape
    x_BLC = _rows(x)
    variance_BC, mean_BC = torch.var_mean(x_BLC, dim=1, correction=0)
    # A group's variance is the mean of its channels' and the variance of their means.
    between_BG, mean_BG = torch.var_mean(mean_BC.view(batch, groups, -1), dim=2, correction=0)
    rstd_BG = (variance_BC.view(batch, groups, -1).mean(dim=2) + between_BG + eps).rsqrt()
    scale_BGC = rstd_BG.unsqueeze(2) * weight.view(groups, -1)
    shift_BGC = torch.addcmul(bias.view(groups, -1), mean_BG.unsqueeze(2), scale_BGC, value=-1)
    out = torch.addcmul(shift_BGC.view(batch, 1, channels), x_BLC, scale_BGC.view(batch, 1, channels))
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2), mean_BG, rstd_BG


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if x.device.type == "cuda":
            out, mean_BG, rstd_BG = normalise_rows(x, groups, weight, bias, eps)
        else:
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
