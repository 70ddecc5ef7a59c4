"""Small layers and tensor helpers shared by the models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

NORM_GROUPS = 32
HALF = (torch.float16, torch.bfloat16)
_LARGE_MAP = 1024  # pixels, on a CPU; on smaller maps PyTorch's own is as fast
_LARGE_BATCH = 2**24  # numbers, on CUDA; for fewer the copies take less than the launches of more kernels

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class SiLU(nn.SiLU):
    """x * sigmoid(x)."""


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the input's dtype; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in HALF and is_large_map(x) and x.device.type == "cpu" and not torch.is_grad_enabled():
            return super().forward(x)  # in float32 too, without a copy in it; on smaller maps it takes longer
        full = x.float()
        if group_norm_is_faster(full):
            out = GroupNormOfRows.apply(full, self.num_groups, self.weight, self.bias, self.eps)
        else:
            out = super().forward(full)
        return out.to(x.dtype)


def group_norm_is_faster(x: Tensor) -> bool:
    """Whether `GroupNormOfRows` is faster than PyTorch's for x [B, C, H, W] and its gradient.

    On a CPU never for a batch of one image: an axis of length one has any stride, and PyTorch's own depends on it.
    """
    if x.dim() != 4 or torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    if x.device.type == "cuda":
        return min(x.shape[1:]) > 1 and x.numel() >= _LARGE_BATCH
    return min(x.shape) > 1 and is_large_map(x) and x.device.type == "cpu" and torch.is_grad_enabled()


def is_large_map(x: Tensor) -> bool:
    """Whether x [B, C, H, W] has so many pixels that the way of normalising it matters on a CPU."""
    return x.dim() == 4 and x.shape[2] * x.shape[3] >= _LARGE_MAP


def normalise_rows(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, means [B, G] and reciprocal deviations [B, G] of x [B, C, H, W]; both in channels_last."""
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


class GroupNormOfRows(torch.autograd.Function):
    """`torch.nn.functional.group_norm` for float32 or float64 x [B, C, H, W] in channels_last.

    A second derivative goes through PyTorch's own.

    It takes whole rows of channels at a time. On a CPU PyTorch's backward pass goes from group to group, whose channels
    are few: on maps of 32x32 and more that takes two to four times as long. On CUDA its forward pass copies to the
    contiguous layout, and the convolution behind it copies back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if x.device.type == "cuda":
            out, mean_BG, rstd_BG = normalise_rows(x, groups, weight, bias, eps)
        else:
            batch, channels, height, width = x.shape
            out, mean_BG, rstd_BG = torch.native_group_norm(
                x, weight, bias, batch, channels, height * width, groups, eps
            )
        ctx.save_for_backward(x, weight, bias, mean_BG, rstd_BG)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean_BG, rstd_BG = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            inputs = (x, weight, bias)
            out = F.group_norm(x, mean_BG.shape[1], weight, bias, ctx.eps)
            wanted = [value for value in inputs if value.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True))
            gradients = [next(found) if value.requires_grad else None for value in inputs]
            return gradients[0], None, *gradients[1:], None
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


def to_fast_layout(network: nn.Module) -> nn.Module:
    """The network with its weights in the layout that its convolutions are fastest in: channels_last, if wide enough.

    Convolutions pass the layout on. Below 64 channels the contiguous one is up to a quarter faster on a CPU.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if convolutions and convolutions[0].out_channels >= 64:
        network.to(memory_format=torch.channels_last)
    return network


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution [B, C, H, W] -> [B, C', H, W] with weight [C', C, 1, 1], fast for small batches too.

    On a single thread PyTorch has only slow code for 1x1 convolutions of less than 16 images. In
    channels_last every row of pixels can pass for an image of its own, at no cost.
    """
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, weight, bias)
    rows = x.permute(0, 2, 3, 1).flatten(0, 1).permute(0, 2, 1).unsqueeze(2)
    out = F.conv2d(rows, weight, bias).squeeze(2).permute(0, 2, 1)
    return out.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)


def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
    """Convolution over 1, 2 or 3 axes; other arguments as in `torch.nn.Conv2d`. ValueError for other `dims`."""
    return _by_dims(_CONV, dims)(*args, **kwargs)


def avg_pool_nd(dims: int, *args, **kwargs) -> nn.Module:
    """Average pooling over 1, 2 or 3 axes; other arguments as in `torch.nn.AvgPool2d`."""
    return _by_dims(_AVG_POOL, dims)(*args, **kwargs)


def _by_dims(table: dict[int, type[nn.Module]], dims: int) -> type[nn.Module]:
    if dims not in table:
        raise ValueError(f"dims: found {dims!r}, expected 1, 2 or 3")
    return table[dims]


def linear(*args, **kwargs) -> nn.Linear:
    """`torch.nn.Linear` under the name that upstream's callers use."""
    return nn.Linear(*args, **kwargs)


def normalization(channels: int) -> GroupNorm32:
    """The models' normalisation layer: 32 groups. ValueError when 32 does not divide `channels`."""
    if channels % NORM_GROUPS:
        raise ValueError(f"{channels} channels: expected a multiple of {NORM_GROUPS} (group normalisation)")
    return GroupNorm32(NORM_GROUPS, channels)


@torch.no_grad()
def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, in place, and return it."""
    for parameter in module.parameters():
        parameter.zero_()
    return module


@torch.no_grad()
def scale_module(module: nn.Module, scale: float) -> nn.Module:
    """Multiply all parameters of `module` by `scale`, in place, and return it."""
    for parameter in module.parameters():
        parameter.mul_(scale)
    return module


@torch.no_grad()
def update_ema(target_params: Iterable[Tensor], source_params: Iterable[Tensor], rate: float = 0.99) -> None:
    """Exponential moving average in place: target = rate * target + (1 - rate) * source."""
    targets, sources = list(target_params), list(source_params)
    if targets:
        torch._foreach_mul_(targets, rate)
        torch._foreach_add_(targets, sources, alpha=1 - rate)


def mean_flat(tensor: Tensor) -> Tensor:
    """Mean over every axis but the first: [B, ...] -> [B]."""
    return tensor.mean(dim=tuple(range(1, tensor.dim())))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000) -> Tensor:
    """Sinusoidal embedding of timesteps [B] (fractions allowed) -> float32 [B, dim].

    The cosine half comes first, then the sine half, with angular frequencies falling geometrically from 1
    to 1 / max_period; an odd `dim` gets one zero column at the end.
    """
    half = dim // 2
    # This order of operations makes the table bitwise equal to upstream's.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(exponents)[None]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def checkpoint(func: Callable, inputs: Sequence, params: Iterable[Tensor], flag: bool):
    """Evaluate `func(*inputs)`, keeping no intermediate activations when `flag` is set.

    `params` is part of upstream's signature; parameters are found by autograd itself here, so frozen ones
    (requires_grad False) work. Randomness inside `func` (dropout) is replayed exactly.
    """
    if not flag:
        return func(*inputs)
    return torch_checkpoint(func, *inputs, use_reentrant=False)


class CheckpointFunction(torch.autograd.Function):
    """Autograd form of `checkpoint`: apply(func, n_inputs, *inputs, *params). Prefer `checkpoint`."""

    @staticmethod
    def forward(ctx, func: Callable, n_inputs: int, *tensors):
        ctx.func, ctx.n_inputs, ctx.tensors = func, n_inputs, tensors
        with torch.no_grad():
            return func(*tensors[:n_inputs])

    @staticmethod
    def backward(ctx, *grad_outputs):
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in ctx.tensors[: ctx.n_inputs]]
        sources = [*leaves, *ctx.tensors[ctx.n_inputs :]]
        with torch.enable_grad():
            outputs = ctx.func(*leaves)
        wanted = [x for x in sources if x.requires_grad]
        grads = iter(torch.autograd.grad(outputs, wanted, grad_outputs, allow_unused=True))
        return (None, None, *(next(grads) if x.requires_grad else None for x in sources))
