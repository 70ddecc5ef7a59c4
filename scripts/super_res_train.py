"""Train a super-resolution diffusion model on a folder of images.

    mpiexec -n 8 python scripts/super_res_train.py --data_dir images/ --large_size 256 --small_size 64 \\
        --learn_sigma --batch_size 8 --lr_anneal_steps 300000

The low-resolution image is the large one averaged over areas. The same command with the same --log_dir resumes from
the newest checkpoint there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F

from guided_diffusion.config.configs import DataConfig, DiffusionConfig, RunConfig, SuperResConfig, TrainConfig
from guided_diffusion.config.create import build_super_res_model
from guided_diffusion.config.flags import Parser
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError
from guided_diffusion.training.setup import train_diffusion_model


def main() -> None:
    parsed = Parser(__doc__, DataConfig, TrainConfig, SuperResConfig, DiffusionConfig, RunConfig).parse()
    config = parsed.make(SuperResConfig)
    if config.small_size > config.large_size:
        raise InputError(f"--small_size: found {config.small_size}, expected at most --large_size {config.large_size}")
    adapt = partial(with_low_res, small_size=config.small_size)
    train_diffusion_model(parsed, config, config.large_size, build_super_res_model, adapt)


def with_low_res(data: Iterator, small_size: int) -> Iterator:
    """Add low_res [B, C, small_size, small_size] to each batch's conditioning."""
    for large, condition in data:
        yield large, {**condition, "low_res": F.interpolate(large, small_size, mode="area")}


if __name__ == "__main__":
    shutdown.run_main(main)
