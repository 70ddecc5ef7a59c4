"""Upstream's unet: the code is in models/unet.py."""

from guided_diffusion.models.attention import *  # noqa: F403
from guided_diffusion.models.blocks import *  # noqa: F403
from guided_diffusion.models.fp16 import *  # noqa: F403
from guided_diffusion.models.layers import *  # noqa: F403
from guided_diffusion.models.unet import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)
