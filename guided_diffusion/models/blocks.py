"""Residual and resampling blocks of the UNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.models.layers import (
    SiLU,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    pointwise,
    zero_module,
)


class TimestepBlock(nn.Module):
    """A module whose forward takes the timestep (and class) embedding `emb` [B, E] as second argument."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        raise NotImplementedError


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    """A sequence that hands `emb` to the children that want it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Double the resolution by nearest neighbour, then (with `use_conv`) a 3-wide convolution.

    With dims=3 only the two inner axes grow.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.use_conv, self.dims = use_conv, dims
        if use_conv:
            self.conv = conv_nd(dims, channels, self.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        _expect_channels(x, self.channels)
        factors = (1, 2, 2) if self.dims == 3 else (2,) * self.dims
        x = F.interpolate(x, scale_factor=factors, mode="nearest")
        return self.conv(x) if self.use_conv else x


class Downsample(nn.Module):
    """Halve the resolution by a strided 3-wide convolution (`use_conv`) or by averaging.

    With dims=3 only the two inner axes shrink. Without the convolution the width cannot change: ValueError.
    """

    def __init__(self, channels: int, use_conv: bool, dims: int = 2, out_channels: int | None = None):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.use_conv, self.dims = use_conv, dims
        stride = (1, 2, 2) if dims == 3 else 2
        if use_conv:
            self.op = conv_nd(dims, channels, self.out_channels, 3, stride=stride, padding=1)
        elif self.out_channels == channels:
            self.op = avg_pool_nd(dims, kernel_size=stride, stride=stride)
        else:
            raise ValueError(f"averaging keeps {channels} channels, expected {out_channels} out: set use_conv")

    def forward(self, x: Tensor) -> Tensor:
        _expect_channels(x, self.channels)
        return self.op(x)


class ResBlock(TimestepBlock):
    """Residual block conditioned on the embedding: [B, C, ...] -> [B, out_channels, ...].

    :param use_scale_shift_norm: the embedding scales and shifts the second normalisation (adaptive group
        normalisation, Dhariwal & Nichol 2021) instead of being added before it.
    :param up, down: resample inside the block, on the main path (before its first convolution) and the skip.
    :param use_conv: a 3-wide instead of a 1-wide skip convolution where the width changes.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,
        use_scale_shift_norm: bool = False,
        dims: int = 2,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ):
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.emb_channels, self.dropout = emb_channels, dropout
        self.use_conv, self.use_scale_shift_norm = use_conv, use_scale_shift_norm
        self.use_checkpoint, self.updown = use_checkpoint, up or down

        self.in_layers = nn.Sequential(
            normalization(channels), SiLU(), conv_nd(dims, channels, self.out_channels, 3, padding=1)
        )
        resample = Upsample if up else Downsample if down else None
        self.h_upd = resample(channels, False, dims) if resample else nn.Identity()
        self.x_upd = resample(channels, False, dims) if resample else nn.Identity()
        emb_width = 2 * self.out_channels if use_scale_shift_norm else self.out_channels
        self.emb_layers = nn.Sequential(SiLU(), linear(emb_channels, emb_width))
        self.out_layers = nn.Sequential(
            normalization(self.out_channels),
            SiLU(),
            nn.Dropout(p=dropout),
            zero_module(conv_nd(dims, self.out_channels, self.out_channels, 3, padding=1)),
        )
        if self.out_channels == channels:
            self.skip_connection = nn.Identity()
        elif use_conv:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 3, padding=1)
        else:
            self.skip_connection = conv_nd(dims, channels, self.out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        flag = self.use_checkpoint and torch.is_grad_enabled()
        return checkpoint(self._forward, (x, emb), self.parameters(), flag)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm_in, act_in, conv_in = self.in_layers
        norm_out, *rest_out = self.out_layers
        h = conv_in(self.h_upd(act_in(norm_in(x))))
        emb_out = self.emb_layers(emb).to(h.dtype)
        emb_out = emb_out.reshape(*emb_out.shape, *[1] * (h.dim() - 2))
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = norm_out(h) * (1 + scale) + shift
        else:
            h = norm_out(h + emb_out)
        for layer in rest_out:
            h = layer(h)
        x, skip = self.x_upd(x), self.skip_connection
        if isinstance(skip, nn.Conv2d) and skip.kernel_size == (1, 1):
            return pointwise(x, skip.weight, skip.bias) + h
        return skip(x) + h


def _expect_channels(x: Tensor, channels: int) -> None:
    if x.shape[1] != channels:
        raise ValueError(f"found {x.shape[1]} channels, expected {channels}")
