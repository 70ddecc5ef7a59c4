"""Upstream's train_util: the code is in training/diffusion_loop.py."""

from guided_diffusion.models import fp16, layers
from guided_diffusion.models.fp16 import INITIAL_LOG_LOSS_SCALE  # noqa: F401
from guided_diffusion.models.layers import update_ema  # noqa: F401
from guided_diffusion.moved import forward_assignments
from guided_diffusion.training import diffusion_loop, resume, timestep_samplers
from guided_diffusion.training.diffusion_loop import (  # noqa: F401
    TrainLoop,
    find_ema_checkpoint,
    find_resume_checkpoint,
    get_blob_logdir,
    load_optimizer,
    log_loss_dict,
)
from guided_diffusion.training.resume import parse_resume_step_from_filename  # noqa: F401
from guided_diffusion.training.timestep_samplers import LossAwareSampler, UniformSampler  # noqa: F401

forward_assignments(__name__, fp16, layers, diffusion_loop, resume, timestep_samplers)
