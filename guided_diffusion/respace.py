"""Upstream's respace: the code is in diffusion/respace.py."""

from guided_diffusion.diffusion import gaussian, respace
from guided_diffusion.diffusion.gaussian import GaussianDiffusion  # noqa: F401
from guided_diffusion.diffusion.respace import SpacedDiffusion, _WrappedModel, space_timesteps  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, gaussian, respace)
