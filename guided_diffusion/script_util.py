"""Upstream's script_util: the code is in config/create.py."""

from guided_diffusion.config import builders, configs, create, flags
from guided_diffusion.config.builders import (  # noqa: F401
    create_classifier,
    create_gaussian_diffusion,
    create_model,
    sr_create_model,
)
from guided_diffusion.config.configs import NUM_CLASSES  # noqa: F401
from guided_diffusion.config.create import (  # noqa: F401
    add_dict_to_argparser,
    args_to_dict,
    build_classifier,
    build_model,
    build_super_res_model,
    classifier_and_diffusion_defaults,
    classifier_defaults,
    create_classifier_and_diffusion,
    create_model_and_diffusion,
    diffusion_defaults,
    model_and_diffusion_defaults,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from guided_diffusion.config.flags import str2bool  # noqa: F401
from guided_diffusion.diffusion import respace
from guided_diffusion.diffusion.respace import SpacedDiffusion  # noqa: F401
from guided_diffusion.models import unet
from guided_diffusion.models.unet import EncoderUNetModel, SuperResModel, UNetModel  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, builders, configs, create, flags, respace, unet)
