"""The contracting half that both networks share, and the constructors of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from .attention import AttentionBlock
from .blocks import Downsample, ResBlock, TimestepEmbedSequential
from .nn import conv_nd


@dataclass
class Encoder:
    """The contracting half and what the rest of a network needs to know of it."""

    input_blocks: nn.ModuleList
    middle_block: TimestepEmbedSequential
    skip_channels: list[int]  # width of every input block's output, in order
    channels: int  # width at the bottom
    downsample_rate: int  # image side / side at the bottom


def build_encoder(
    *,
    dims: int,
    in_channels: int,
    model_channels: int,
    channel_mult: Sequence[float],
    num_res_blocks: int,
    attention_resolutions: Collection[int],
    conv_resample: bool,
    resblock_updown: bool,
    residual: Callable[..., ResBlock],
    attention: Callable[[int], AttentionBlock],
) -> Encoder:
    """Levels of residual blocks, with attention where the downsampling rate is in `attention_resolutions`,
    a downsampler after each level but the last, and the middle block.

    :param residual: residual(channels, out_channels=..., down=...) makes a residual block.
    :param attention: attention(channels) makes an attention block.
    """
    channels = int(channel_mult[0] * model_channels)
    blocks = nn.ModuleList([TimestepEmbedSequential(conv_nd(dims, in_channels, channels, 3, padding=1))])
    skips, rate = [channels], 1
    for level, mult in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            width = int(mult * model_channels)
            layers: list[nn.Module] = [residual(channels, out_channels=width)]
            channels = width
            if rate in attention_resolutions:
                layers.append(attention(channels))
            blocks.append(TimestepEmbedSequential(*layers))
            skips.append(channels)
        if level < len(channel_mult) - 1:
            down = (
                residual(channels, out_channels=channels, down=True)
                if resblock_updown
                else Downsample(channels, conv_resample, dims=dims, out_channels=channels)
            )
            blocks.append(TimestepEmbedSequential(down))
            skips.append(channels)
            rate *= 2
    middle = TimestepEmbedSequential(residual(channels), attention(channels), residual(channels))
    return Encoder(blocks, middle, skips, channels, rate)


def block_factories(
    embed_dim: int,
    dropout: float,
    dims: int,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    num_head_channels: int,
    use_new_attention_order: bool,
) -> tuple[Callable[..., ResBlock], Callable[..., AttentionBlock]]:
    """Constructors with what all blocks of a network have in common."""
    residual = partial(
        ResBlock,
        emb_channels=embed_dim,
        dropout=dropout,
        dims=dims,
        use_checkpoint=use_checkpoint,
        use_scale_shift_norm=use_scale_shift_norm,
    )
    attention = partial(
        AttentionBlock,
        num_head_channels=num_head_channels,
        use_checkpoint=use_checkpoint,
        use_new_attention_order=use_new_attention_order,
    )
    return residual, attention
