"""Train a diffusion model on a folder of images.

    mpiexec -n 8 python scripts/image_train.py --data_dir images/ --image_size 64 --learn_sigma \\
        --batch_size 32 --lr_anneal_steps 300000

Continue with --resume_checkpoint <log_dir>/modelNNNNNN.pt and otherwise the same flags.
"""

from __future__ import annotations

import dataclasses

from guided_diffusion import dist_util, logger, run_setup
from guided_diffusion.configs import DataConfig, DiffusionConfig, ModelConfig, RunConfig, TrainConfig
from guided_diffusion.flags import Parser
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import build_diffusion, build_model
from guided_diffusion.train_util import TrainLoop


def main() -> None:
    given = Parser(__doc__, DataConfig, TrainConfig, ModelConfig, DiffusionConfig, RunConfig).parse()
    run, data_config, config = given.make(RunConfig), given.make(DataConfig), given.make(ModelConfig)
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
        image_size=config.image_size,
        class_cond=config.class_cond,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=class_names,
    )
    schedule_sampler = create_named_schedule_sampler(train.pop("schedule_sampler"), diffusion)
    loop = TrainLoop(
        model=build_model(dataclasses.replace(config, use_fp16=False), diffusion_config).to(dist_util.dev()),
        diffusion=diffusion,
        data=data,
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


if __name__ == "__main__":
    dist_util.run_main(main)
