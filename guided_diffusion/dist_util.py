"""Upstream's dist_util: the code is in distributed/ and in io/checkpoint.py."""

from guided_diffusion.distributed.collectives import (  # noqa: F401
    GPUS_PER_NODE,
    barrier,
    dev,
    get_rank,
    get_world_size,
    sync_params,
)
from guided_diffusion.distributed.process_group import setup_dist  # noqa: F401
from guided_diffusion.distributed.shutdown import run_main  # noqa: F401
from guided_diffusion.io.checkpoint import load_state_dict  # noqa: F401
from guided_diffusion.moved import forward_assignments

SETUP_RETRY_COUNT = 3  # read by nothing, as in upstream

forward_assignments(__name__)
