"""Upstream's gaussian_diffusion: the code is in diffusion/gaussian.py."""

from guided_diffusion.diffusion.enums import *  # noqa: F403
from guided_diffusion.diffusion.gaussian import *  # noqa: F403
from guided_diffusion.diffusion.gaussian import _extract_into_tensor  # noqa: F401
from guided_diffusion.diffusion.schedules import *  # noqa: F403
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)
