"""Small layers and tensor helpers shared by the models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from guided_diffusion.models.group_norm import group_norm, suits

NORM_GROUPS = 32

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class SiLU(nn.SiLU):
    """x * sigmoid(x)."""


class GroupNorm32(nn.GroupNorm):
    """Group normalisation computed in float32 whatever the input's dtype; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        full = x.float()
        if suits(full):
            out = group_norm(full, self.num_groups, self.weight, self.bias, self.eps)
        else:
            out = super().forward(full)
        return out.to(x.dtype)


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

    On a single thread PyTorch leaves 1x1 convolutions of less than 16 images to its slowest code. In
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
