"""Upstream's unet: the code is in models/unet.py."""

from guided_diffusion.models import attention, blocks, fp16, layers, unet
from guided_diffusion.models.attention import (  # noqa: F401
    AttentionBlock,
    AttentionPool2d,
    QKVAttention,
    QKVAttentionLegacy,
    count_flops_attn,
)
from guided_diffusion.models.blocks import (  # noqa: F401
    Downsample,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
)
from guided_diffusion.models.fp16 import convert_module_to_f16, convert_module_to_f32  # noqa: F401
from guided_diffusion.models.layers import conv_nd, linear, normalization, timestep_embedding, zero_module  # noqa: F401
from guided_diffusion.models.unet import EncoderUNetModel, SuperResModel, UNetModel  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, attention, blocks, fp16, layers, unet)
