"""From flags to a running training of a diffusion model: what image_train and super_res_train share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from torch import nn

from . import dist_util, logger, run_setup
from .configs import DataConfig, DiffusionConfig, ModelConfig, RunConfig, SuperResConfig, TrainConfig
from .flags import Given
from .image_datasets import load_data
from .resample import create_named_schedule_sampler
from .script_util import build_diffusion
from .train_util import TrainLoop


def train_diffusion_model(
    given: Given,
    config: ModelConfig | SuperResConfig,
    image_size: int,
    build: Callable[..., nn.Module],
    adapt: Callable[[Iterator], Iterator] = iter,
) -> None:
    """Train on the images of --data_dir until the flags say stop.

    :param config: of the network; its num_classes is counted in the folder when the model is conditional.
    :param image_size: side of the training images, pixels.
    :param build: build(config, diffusion_config) -> network.
    :param adapt: turns the iterator of (images, conditioning) into the one to train on.
    """
    run, data_config = given.make(RunConfig), given.make(DataConfig)
    diffusion_config, train = given.make(DiffusionConfig), dataclasses.asdict(given.make(TrainConfig))
    run_setup.begin(run)
    class_names = None
    if config.class_cond:
        num_classes, class_names = run_setup.count_classes(given, data_config.data_dir)
        config = dataclasses.replace(config, num_classes=num_classes)
    diffusion = build_diffusion(diffusion_config)
    data = load_data(
        data_dir=data_config.data_dir,
        batch_size=train["batch_size"],
        image_size=image_size,
        class_cond=config.class_cond,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=class_names,
    )
    loop = TrainLoop(
        model=build(dataclasses.replace(config, use_fp16=False), diffusion_config).to(dist_util.dev()),
        diffusion=diffusion,
        data=adapt(data),
        schedule_sampler=create_named_schedule_sampler(train.pop("schedule_sampler"), diffusion),
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
