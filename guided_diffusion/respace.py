"""Upstream's respace: the code is in diffusion/respace.py."""

from guided_diffusion.diffusion.gaussian import *  # noqa: F403
from guided_diffusion.diffusion.respace import *  # noqa: F403
from guided_diffusion.diffusion.respace import _WrappedModel  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__)
