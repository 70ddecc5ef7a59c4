"""Train a super-resolution diffusion model on a folder of images.

    mpiexec -n 8 python scripts/super_res_train.py --data_dir images/ --large_size 256 --small_size 64 \\
        --learn_sigma --batch_size 8 --lr_anneal_steps 300000

The low-resolution image is the large one averaged over areas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch.nn.functional as F

from guided_diffusion import dist_util, logger, run_setup
from guided_diffusion.configs import DataConfig, DiffusionConfig, RunConfig, SuperResConfig, TrainConfig
from guided_diffusion.errors import InputError
from guided_diffusion.flags import Parser
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import build_diffusion, build_super_res_model
from guided_diffusion.train_util import TrainLoop


def main() -> None:
    given = Parser(__doc__, DataConfig, TrainConfig, SuperResConfig, DiffusionConfig, RunConfig).parse()
    run, data_config, config = given.make(RunConfig), given.make(DataConfig), given.make(SuperResConfig)
    diffusion_config, train = given.make(DiffusionConfig), dataclasses.asdict(given.make(TrainConfig))
    if config.small_size > config.large_size:
        raise InputError(f"--small_size: found {config.small_size}, expected at most --large_size {config.large_size}")
    run_setup.begin(run)

    class_names = None
    if config.class_cond:
        num_classes, class_names = run_setup.count_classes(given, data_config.data_dir)
        config = dataclasses.replace(config, num_classes=num_classes)
    diffusion = build_diffusion(diffusion_config)
    data = load_data(
        data_dir=data_config.data_dir,
        batch_size=train["batch_size"],
        image_size=config.large_size,
        class_cond=config.class_cond,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=class_names,
    )
    schedule_sampler = create_named_schedule_sampler(train.pop("schedule_sampler"), diffusion)
    loop = TrainLoop(
        model=build_super_res_model(dataclasses.replace(config, use_fp16=False), diffusion_config).to(dist_util.dev()),
        diffusion=diffusion,
        data=with_low_res(data, config.small_size),
        schedule_sampler=schedule_sampler,
        use_fp16=config.use_fp16,
        amp_name=run.amp_dtype,
        **train,
    )
    run_setup.save_config(
        given.resolve(DataConfig, TrainConfig, DiffusionConfig, RunConfig)
        | dataclasses.asdict(config)
        | {"class_names": class_names}
    )
    loop.run_loop()
    logger.log(f"checkpoints: {logger.get_dir()}")


def with_low_res(data: Iterator, small_size: int) -> Iterator:
    """Add low_res [B, C, small_size, small_size] to each batch's conditioning."""
    for large, condition in data:
        yield large, {**condition, "low_res": F.interpolate(large, small_size, mode="area")}


if __name__ == "__main__":
    dist_util.run_main(main)
