"""Upstream's train_util: the code is in training/diffusion_loop.py."""

from guided_diffusion.models.fp16 import *  # noqa: F403
from guided_diffusion.models.layers import *  # noqa: F403
from guided_diffusion.moved import forward_assignments
from guided_diffusion.training.diffusion_loop import *  # noqa: F403
from guided_diffusion.training.resume import *  # noqa: F403
from guided_diffusion.training.timestep_samplers import *  # noqa: F403

forward_assignments(__name__)
