"""Upstream's gaussian_diffusion: the code is in diffusion/gaussian.py."""

from guided_diffusion.diffusion import enums, gaussian, schedules
from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType  # noqa: F401
from guided_diffusion.diffusion.gaussian import GaussianDiffusion, _extract_into_tensor  # noqa: F401
from guided_diffusion.diffusion.schedules import betas_for_alpha_bar, get_named_beta_schedule  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, enums, gaussian, schedules)
