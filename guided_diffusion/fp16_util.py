"""Upstream's fp16_util: the code is in models/fp16.py."""

from guided_diffusion.models import fp16
from guided_diffusion.models.fp16 import (  # noqa: F401
    INITIAL_LOG_LOSS_SCALE,
    MixedPrecisionTrainer,
    check_overflow,
    convert_module_to_f16,
    convert_module_to_f32,
    flat_optimizer_state,
    get_param_groups_and_shapes,
    make_master_params,
    master_params_to_model_params,
    master_params_to_state_dict,
    model_grads_to_master_grads,
    param_grad_or_zeros,
    state_dict_to_master_params,
    unflatten_master_params,
    unflatten_optimizer_state,
    zero_grad,
    zero_master_grads,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, fp16)
