"""Upstream's respace: the code is in diffusion/respace.py."""


from guided_diffusion.diffusion import gaussian, respace
from guided_diffusion.diffusion.gaussian import (  # noqa: F401
    GaussianDiffusion,
)
from guided_diffusion.diffusion.respace import (  # noqa: F401
    SpacedDiffusion,
    _WrappedModel,
    space_timesteps,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, gaussian, respace)
