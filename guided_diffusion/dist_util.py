"""Upstream's dist_util: the code is in distributed/process_group.py."""

from guided_diffusion.distributed import collectives, process_group, shutdown
from guided_diffusion.distributed.collectives import barrier, dev, get_rank, get_world_size, sync_params  # noqa: F401
from guided_diffusion.distributed.process_group import (  # noqa: F401
    GPUS_PER_NODE,
    SETUP_RETRY_COUNT,
    load_state_dict,
    setup_dist,
)
from guided_diffusion.distributed.shutdown import run_main  # noqa: F401
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, collectives, process_group, shutdown)
