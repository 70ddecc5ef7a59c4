"""The three networks: noise predictor, super-resolution noise predictor, noise-aware classifier.

The parameters' names are those of the published checkpoints; there are no buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.models.attention import AttentionBlock, AttentionPool2d
from guided_diffusion.models.blocks import Downsample, ResBlock, TimestepEmbedSequential, Upsample
from guided_diffusion.models.fp16 import convert_module_to_f16, convert_module_to_f32
from guided_diffusion.models.layers import SiLU, conv_nd, linear, normalization, timestep_embedding, zero_module

# The modules that run in half precision; the classifier has no output blocks.
BLOCKS = ("input_blocks", "middle_block", "output_blocks")


class _Encoder:
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


class _TimestepNetwork(nn.Module):
    """Shared parts of both networks: the timestep embedding, the contracting half, and the switch to half precision."""

    def _build(self, arguments: Mapping[str, Any], num_classes: int | None = None) -> _Encoder:
        """Make the shared layers from the arguments of the network's constructor; return the contracting half."""
        super().__init__()
        for name in ("image_size", "in_channels", "out_channels", "model_channels"):
            setattr(self, name, arguments[name])
        # The dtype of the blocks' activations. Upstream's contract: the constructor sets it, and
        # convert_to_fp16() converts the weights to match.
        self.dtype = torch.float16 if arguments["use_fp16"] else torch.float32
        width = 4 * self.model_channels
        self.time_embed = nn.Sequential(linear(self.model_channels, width), SiLU(), linear(width, width))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, width)
        encoder = _Encoder(arguments, width)
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block
        return encoder

    def convert_to_fp16(self) -> None:
        """Turn the convolutions of the blocks (not of the head) into float16; the rest is kept in float32."""
        for name in BLOCKS:
            getattr(self, name, nn.Module()).apply(convert_module_to_f16)

    def convert_to_fp32(self) -> None:
        """Undo `convert_to_fp16`."""
        for name in BLOCKS:
            getattr(self, name, nn.Module()).apply(convert_module_to_f32)

    def _embed(self, x: Tensor, timesteps: Tensor) -> Tensor:
        with full_precision(x):
            return self.time_embed(timestep_embedding(timesteps, self.model_channels))


def full_precision(x: Tensor) -> torch.autocast:
    """Suspend autocast: the embedding and the output layers keep float32, as in upstream's half mode."""
    return torch.autocast(x.device.type, enabled=False)


class UNetModel(_TimestepNetwork):
    """UNet that predicts noise (and variance): x_t [B, in_channels, S, S], t [B] -> [B, out_channels, S, S].

    :param image_size: side S of the images, pixels.
    :param attention_resolutions: downsampling rates (1, 2, 4, ...) at which attention is used.
    :param channel_mult: width of each level over `model_channels`; fractions allowed.
    :param num_classes: if given, `forward` needs labels y [B], 0 <= y < num_classes.
    :param num_heads_upsample: heads in the expanding half; -1 means `num_heads`.
    :raises ValueError: widths that are no multiple of 32 or do not divide into heads.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ):
        encoder = self._build(locals(), num_classes)
        self.num_res_blocks, self.attention_resolutions = num_res_blocks, attention_resolutions
        self.channel_mult, self.num_classes = channel_mult, num_classes
        residual, attention = encoder.residual, encoder.attention
        self.output_blocks = nn.ModuleList()
        channels, rate, skips = encoder.channels, encoder.downsample_rate, encoder.skip_channels
        upsample_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                width = int(mult * model_channels)
                layers: list[nn.Module] = [residual(channels + skips.pop(), out_channels=width)]
                channels = width
                if rate in attention_resolutions:
                    layers.append(attention(channels, num_heads=upsample_heads))
                if level and i == num_res_blocks:
                    layers.append(
                        residual(channels, out_channels=channels, up=True)
                        if resblock_updown
                        else Upsample(channels, conv_resample, dims=dims, out_channels=channels)
                    )
                    rate //= 2
                self.output_blocks.append(TimestepEmbedSequential(*layers))
        self.out = nn.Sequential(
            normalization(channels),
            SiLU(),
            zero_module(conv_nd(dims, channels, out_channels, 3, padding=1)),
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, *, depth: int = 0, deep: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict from x_t; the output has x's dtype. ValueError when labels are missing or not wanted.

        :param depth: D > 0, below the number of input blocks: return (prediction, deep features), the latter being what
            enters the last D output blocks besides skips.
        :param deep: such features, of another x_t: only the first D input blocks and the last D output blocks run.
        """
        if (y is None) != (self.num_classes is None):
            found = "missing" if y is None else "given"
            raise ValueError(f"y {found}, but the model has num_classes={self.num_classes}")
        emb = self._embed(x, timesteps)
        if y is not None:
            if y.shape != (x.shape[0],):
                raise ValueError(f"y: found shape {tuple(y.shape)}, expected ({x.shape[0]},)")
            emb = emb + self.label_emb(y)
        input_blocks, output_blocks = list(self.input_blocks), list(self.output_blocks)
        if deep is not None:
            input_blocks, output_blocks = input_blocks[:depth], output_blocks[-depth:]
        h = x.to(self.dtype)
        skips = []
        for block in input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb) if deep is None else deep
        for block in output_blocks:
            if len(skips) == depth:
                deep = h
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        with full_precision(x):
            out = self.out(h.to(x.dtype))
        return (out, deep) if depth else out


class SuperResModel(UNetModel):
    """UNet whose input is also a low-resolution image, resized bilinearly and stacked on the input channels."""

    def __init__(self, image_size: int, in_channels: int, *args, **kwargs):
        super().__init__(image_size, in_channels * 2, *args, **kwargs)

    def forward(
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, **kwargs
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict as `UNetModel.forward` does, with low_res [B, in_channels, s, s] in [-1, 1]."""
        if low_res is None:
            raise ValueError("low_res missing: the super-resolution model needs the low-resolution images")
        resized = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, resized], dim=1), timesteps, **kwargs)


class EncoderUNetModel(_TimestepNetwork):
    """The UNet's contracting half with a pooled output: x_t [B, in_channels, S, S], t [B] -> [B, out_channels].

    Arguments as for `UNetModel`, and `pool`, how the map becomes a vector: "adaptive" (mean, then 1x1
    convolution), "attention" (needs num_head_channels), "spatial" or "spatial_v2" (means of every block's
    output through a two-layer network). NotImplementedError for other pools.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ):
        encoder = self._build(locals())
        self.pool = pool
        self.out = _build_pool(pool, encoder, dims, image_size, num_head_channels, out_channels)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits (or any vector) for x_t, in x's dtype, float32 under autocast."""
        emb = self._embed(x, timesteps)
        h = x.to(self.dtype)
        pyramid = []
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, emb)
            if self.pool.startswith("spatial"):
                pyramid.append(h.to(x.dtype).mean(dim=(2, 3)))
        with full_precision(x):
            return self.out(torch.cat(pyramid, dim=-1) if pyramid else h.to(x.dtype))


def _build_pool(
    pool: str, encoder: _Encoder, dims: int, image_size: int, num_head_channels: int, out_channels: int
) -> nn.Sequential:
    """Return the classifier's head. The positions in the sequence are part of the checkpoint format."""
    channels, pyramid, hidden = encoder.channels, sum(encoder.skip_channels) + encoder.channels, 2048
    if pool == "adaptive":
        mean = nn.AdaptiveAvgPool2d((1, 1))
        project = zero_module(conv_nd(dims, channels, out_channels, 1))
        return nn.Sequential(normalization(channels), SiLU(), mean, project, nn.Flatten())
    if pool == "attention":
        if num_head_channels == -1:
            raise ValueError("pool 'attention': num_head_channels not given, expected a divisor of the width")
        attend = AttentionPool2d(image_size // encoder.downsample_rate, channels, num_head_channels, out_channels)
        return nn.Sequential(normalization(channels), SiLU(), attend)
    if pool == "spatial":
        return nn.Sequential(linear(pyramid, hidden), nn.ReLU(), linear(hidden, out_channels))
    if pool == "spatial_v2":
        return nn.Sequential(linear(pyramid, hidden), normalization(hidden), SiLU(), linear(hidden, out_channels))
    raise NotImplementedError(f"pool: found {pool!r}, expected adaptive, attention, spatial or spatial_v2")
