"""Upstream's script_util: the code is in config/."""

from guided_diffusion.config.builders import *  # noqa: F403
from guided_diffusion.config.configs import *  # noqa: F403
from guided_diffusion.config.create import *  # noqa: F403
from guided_diffusion.config.flags import *  # noqa: F403
from guided_diffusion.diffusion.respace import *  # noqa: F403
from guided_diffusion.models.unet import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)
