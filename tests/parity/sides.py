"""Our modules under upstream's attribute names, and the surroundings that both implementations need."""

from __future__ import annotations

from contextlib import contextmanager

import torch.distributed as dist

from guided_diffusion import (
    dist_util,
    fp16_util,
    gaussian_diffusion,
    logger,
    resample,
    respace,
    script_util,
    train_util,
    unet,
)


class Ours:
    """A namespace of our modules, in the place of upstream's."""

    dist_util = dist_util
    fp16_util = fp16_util
    gaussian_diffusion = gaussian_diffusion
    logger = logger
    resample = resample
    respace = respace
    script_util = script_util
    train_util = train_util
    unet = unet


@contextmanager
def process_group():
    """A process group of one, as upstream's training code needs it."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def quiet_log(side, folder):
    with side.logger.scoped_configure(dir=str(folder), format_strs=["csv"]):
        yield
