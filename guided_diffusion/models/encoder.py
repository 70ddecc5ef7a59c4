"""The contracting half that both networks share, and the constructors of its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn

from guided_diffusion.models.attention import AttentionBlock
from guided_diffusion.models.blocks import Downsample, ResBlock, TimestepEmbedSequential
from guided_diffusion.models.layers import conv_nd


class Encoder:
    """The contracting half: levels of residual blocks, with attention where the downsampling rate is in
    `attention_resolutions`, a downsampler after each level but the last, and the middle block.

    Attributes: `input_blocks`, `middle_block`; `skip_channels`, the width of every input block's output, in order;
    `channels`, the width at the bottom; `downsample_rate`, image side over side at the bottom; and the constructors of
    the network's blocks, residual(channels, out_channels=..., down=...) and attention(channels, num_heads=...).

    :param arguments: those of the network's constructor, see `UNetModel`, by name.
    :param embed_dim: width of the timestep embedding.
    """

    def __init__(self, arguments: Mapping[str, Any], embed_dim: int):
        given = SimpleNamespace(**arguments)
        self.residual = partial(
            ResBlock,
            emb_channels=embed_dim,
            dropout=given.dropout,
            dims=given.dims,
            use_checkpoint=given.use_checkpoint,
            use_scale_shift_norm=given.use_scale_shift_norm,
        )
        self.attention = partial(
            AttentionBlock,
            num_heads=given.num_heads,
            num_head_channels=given.num_head_channels,
            use_checkpoint=given.use_checkpoint,
            use_new_attention_order=given.use_new_attention_order,
        )
        widths = [int(mult * given.model_channels) for mult in given.channel_mult]
        self.channels, self.downsample_rate = widths[0], 1
        self.input_blocks, self.skip_channels = nn.ModuleList(), []
        self._append(conv_nd(given.dims, given.in_channels, self.channels, 3, padding=1))
        for level, width in enumerate(widths):
            for _ in range(given.num_res_blocks):
                layers: list[nn.Module] = [self.residual(self.channels, out_channels=width)]
                self.channels = width
                if self.downsample_rate in given.attention_resolutions:
                    layers.append(self.attention(width))
                self._append(*layers)
            if level < len(widths) - 1:
                self._append(
                    self.residual(width, out_channels=width, down=True)
                    if given.resblock_updown
                    else Downsample(width, given.conv_resample, dims=given.dims, out_channels=width)
                )
                self.downsample_rate *= 2
        self.middle_block = TimestepEmbedSequential(
            self.residual(self.channels), self.attention(self.channels), self.residual(self.channels)
        )

    def _append(self, *layers: nn.Module) -> None:
        """Add an input block, whose output has `channels` channels."""
        self.input_blocks.append(TimestepEmbedSequential(*layers))
        self.skip_channels.append(self.channels)
