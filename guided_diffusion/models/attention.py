"""Self-attention over the pixels of a feature map, and attention pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.models.layers import HALF, checkpoint, conv_nd, normalization, pointwise, zero_module


def count_flops_attn(model: nn.Module, _x, y) -> None:
    """Operation counter for the `thop` profiler: adds the two matrix products of attention to `total_ops`."""
    batch, channels, *spatial = y[0].shape
    tokens = math.prod(spatial)
    model.total_ops += torch.DoubleTensor([2 * batch * tokens**2 * channels])


class _HeadwiseAttention(nn.Module):
    """Scaled dot-product attention on packed queries, keys and values: [B, 3*H*C, L] -> [B, H*C, L].

    A subclass's `_unpack` knows the order of the channels: [B, 3*H*C, L] -> three tensors [B, H, C, L].
    """

    count_flops = staticmethod(count_flops_attn)
    fused_in_training = False

    def __init__(self, n_heads: int):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.transpose(-1, -2) for part in self._unpack(qkv))
        if v.shape[-2] == 1:
            # A token alone attends to itself. CUDA's fused kernel in float32 rejects its strides, which are arbitrary.
            return v.transpose(-1, -2).flatten(1, 2)
        # Training on a CPU uses the unfused form by default, whose rounding is upstream's: Adam turns the rounding of
        # gradients that should vanish (the keys' biases) into full steps.
        if self.training and not self.fused_in_training and qkv.device.type == "cpu":
            root_scale = q.shape[-1] ** -0.25
            weights_BHLL = torch.softmax((q * root_scale) @ (k * root_scale).transpose(-1, -2), dim=-1)
            heads_BHLC = weights_BHLL @ v
        else:  # the fused kernels want each token's channels side by side in memory, as they are in channels_last
            q, k, v = (part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v))
            heads_BHLC = _attend(q, k, v)
        return heads_BHLC.transpose(-1, -2).flatten(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention by PyTorch's kernels: three tensors [B, H, L, C] -> [B, H, L, C]."""
    if q.device.type != "cpu" or q.dtype not in HALF or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v)
    # In half precision the kernel's backward pass takes five to eight times as long, its forward pass no less.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def fuse_attention(network: nn.Module) -> nn.Module:
    """Use the fused kernels also in training on a CPU: faster, with gradients that agree up to rounding."""
    for module in network.modules():
        if isinstance(module, _HeadwiseAttention):
            module.fused_in_training = True
    return network


class QKVAttentionLegacy(_HeadwiseAttention):
    """Channel order of the older checkpoints: every head holds its own q, k, v (head, qkv, channel)."""

    def _unpack(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return qkv.unflatten(1, (self.n_heads, 3, -1)).unbind(dim=2)


class QKVAttention(_HeadwiseAttention):
    """Newer channel order: all queries, then all keys, then all values (qkv, head, channel)."""

    def _unpack(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return qkv.unflatten(1, (3, self.n_heads, -1)).unbind(dim=1)


class AttentionBlock(nn.Module):
    """Residual self-attention: x + proj_out(attention(norm(x))), for x [B, C, ...], same shape out.

    :param num_head_channels: channels per head; -1 uses `num_heads` heads instead.
    :raises ValueError: channels not divisible by heads or by channels per head.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ):
        super().__init__()
        divisor = num_heads if num_head_channels == -1 else num_head_channels
        if divisor < 1 or channels % divisor:
            what = "heads" if num_head_channels == -1 else "channels per attention head"
            raise ValueError(f"{channels} channels cannot be divided evenly by {divisor} {what}")
        self.channels = channels
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.use_checkpoint = use_checkpoint
        self.norm = normalization(channels)
        self.qkv = conv_nd(1, channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(self.num_heads)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self._forward, (x,), self.parameters(), self.use_checkpoint and torch.is_grad_enabled())

    def _forward(self, x: Tensor) -> Tensor:
        # Always an image: unlike [B, C, L] it can be channels_last, so that nothing is copied in between.
        image = x if x.dim() == 4 else x.flatten(2).unsqueeze(2)
        qkv_BCL = pointwise(self.norm(image), self.qkv.weight.unsqueeze(-1), self.qkv.bias).flatten(2)
        update = self.attention(qkv_BCL).unflatten(2, image.shape[2:])
        update = pointwise(update, self.proj_out.weight.unsqueeze(-1), self.proj_out.bias)
        return (image + update).view_as(x)


class AttentionPool2d(nn.Module):
    """Pool a feature map [B, C, S, S] to [B, output_dim] by attention from its mean token.

    :param spacial_dim: side S of the map (upstream's spelling).
    :param num_heads_channels: channels per head; must divide `embed_dim`, else ValueError.
    """

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads_channels: int, output_dim: int | None = None):
        super().__init__()
        if embed_dim % num_heads_channels:
            raise ValueError(
                f"{embed_dim} channels cannot be divided evenly by {num_heads_channels} channels per attention head"
            )
        self.positional_embedding = nn.Parameter(torch.randn(embed_dim, spacial_dim**2 + 1).div_(embed_dim**0.5))
        self.qkv_proj = conv_nd(1, embed_dim, 3 * embed_dim, 1)
        self.c_proj = conv_nd(1, embed_dim, output_dim or embed_dim, 1)
        self.num_heads = embed_dim // num_heads_channels
        self.attention = QKVAttention(self.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens_BCL = x.flatten(2)
        tokens_BCL = torch.cat([tokens_BCL.mean(dim=-1, keepdim=True), tokens_BCL], dim=-1)
        tokens_BCL = tokens_BCL + self.positional_embedding.to(tokens_BCL.dtype)
        # Only the mean token is read out, so it alone needs a query.
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        embed_dim = tokens_BCL.shape[1]
        q_BC1 = F.conv1d(tokens_BCL[..., :1], weight[:embed_dim], bias[:embed_dim])
        k_BCL, v_BCL = F.conv1d(tokens_BCL, weight[embed_dim:], bias[embed_dim:]).chunk(2, dim=1)
        q, k, v = (part.unflatten(1, (self.num_heads, -1)) for part in (q_BC1, k_BCL, v_BCL))  # [B, H, C, tokens]
        # Two small products; the fused kernels are made for many queries.
        weights_BH1L = torch.softmax((q.transpose(-1, -2) * q.shape[2] ** -0.5) @ k, dim=-1)
        pooled_BC1 = (v @ weights_BH1L.to(v.dtype).transpose(-1, -2)).flatten(1, 2)
        return self.c_proj(pooled_BC1)[..., 0]
