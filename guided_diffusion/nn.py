"""Upstream's nn: the code is in models/layers.py."""

from guided_diffusion.models import layers
from guided_diffusion.models.layers import (  # noqa: F401
    CheckpointFunction,
    GroupNorm32,
    SiLU,
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    mean_flat,
    normalization,
    pointwise,
    scale_module,
    timestep_embedding,
    to_fast_layout,
    update_ema,
    zero_module,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, layers)
