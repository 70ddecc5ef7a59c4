"""Upstream's gaussian_diffusion: the code is in diffusion/gaussian.py."""


from guided_diffusion.diffusion import enums, gaussian, schedules
from guided_diffusion.diffusion.enums import (  # noqa: F401
    LossType,
    ModelMeanType,
    ModelVarType,
)
from guided_diffusion.diffusion.gaussian import (  # noqa: F401
    GaussianDiffusion,
    _extract_into_tensor,
)
from guided_diffusion.diffusion.schedules import (  # noqa: F401
    betas_for_alpha_bar,
    get_named_beta_schedule,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, enums, gaussian, schedules)
