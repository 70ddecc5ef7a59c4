"""The contracting half that both networks share, and the constructors of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import nn

from guided_diffusion.models.attention import AttentionBlock
from guided_diffusion.models.blocks import Downsample, ResBlock, TimestepEmbedSequential
from guided_diffusion.models.layers import conv_nd


@dataclass(frozen=True)
class EncoderConfig:
    """What the contracting half and its blocks are made from: arguments of both networks, see `UNetModel`."""

    in_channels: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: Collection[int]
    dropout: float
    channel_mult: Sequence[float]
    conv_resample: bool
    dims: int
    use_checkpoint: bool
    num_heads: int
    num_head_channels: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    use_new_attention_order: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> EncoderConfig:
        """Take from a network's arguments those that it has fields for."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def block_factories(self, embed_dim: int) -> tuple[Callable[..., ResBlock], Callable[..., AttentionBlock]]:
        """Return constructors with what all blocks of a network have in common.

        residual(channels, out_channels=..., down=...) makes a residual block, attention(channels, num_heads=...) one of
        attention.
        """
        residual = partial(
            ResBlock,
            emb_channels=embed_dim,
            dropout=self.dropout,
            dims=self.dims,
            use_checkpoint=self.use_checkpoint,
            use_scale_shift_norm=self.use_scale_shift_norm,
        )
        attention = partial(
            AttentionBlock,
            num_head_channels=self.num_head_channels,
            use_checkpoint=self.use_checkpoint,
            use_new_attention_order=self.use_new_attention_order,
        )
        return residual, attention


@dataclass
class Encoder:
    """The contracting half and what the rest of a network needs to know of it."""

    input_blocks: nn.ModuleList
    middle_block: TimestepEmbedSequential
    skip_channels: list[int]  # width of every input block's output, in order
    channels: int  # width at the bottom
    downsample_rate: int  # image side / side at the bottom


def build_encoder(
    config: EncoderConfig, residual: Callable[..., ResBlock], attention: Callable[..., AttentionBlock]
) -> Encoder:
    """Return the `Encoder`: levels of residual blocks, with attention where the downsampling rate is in
    `attention_resolutions`, a downsampler after each level but the last, and the middle block.

    :param residual, attention: as `EncoderConfig.block_factories` gives them.
    """
    model_channels, channel_mult, dims = config.model_channels, config.channel_mult, config.dims
    attention = partial(attention, num_heads=config.num_heads)
    channels = int(channel_mult[0] * model_channels)
    blocks = nn.ModuleList([TimestepEmbedSequential(conv_nd(dims, config.in_channels, channels, 3, padding=1))])
    skips, rate = [channels], 1
    for level, mult in enumerate(channel_mult):
        for _ in range(config.num_res_blocks):
            width = int(mult * model_channels)
            layers: list[nn.Module] = [residual(channels, out_channels=width)]
            channels = width
            if rate in config.attention_resolutions:
                layers.append(attention(channels))
            blocks.append(TimestepEmbedSequential(*layers))
            skips.append(channels)
        if level < len(channel_mult) - 1:
            down = (
                residual(channels, out_channels=channels, down=True)
                if config.resblock_updown
                else Downsample(channels, config.conv_resample, dims=dims, out_channels=channels)
            )
            blocks.append(TimestepEmbedSequential(down))
            skips.append(channels)
            rate *= 2
    middle = TimestepEmbedSequential(residual(channels), attention(channels), residual(channels))
    return Encoder(blocks, middle, skips, channels, rate)
