"""Train a noise-aware classifier, with --ect by entropy-constraint training (Eq. 11-12 of the paper).

    mpiexec -n 8 python scripts/classifier_train.py --ect --data_dir train/ --val_data_dir val/ \\
        --image_size 256 --batch_size 32 --anneal_lr --classifier_use_fp16

The same command with the same --log_dir goes on from the newest checkpoint there.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from functools import partial

from ed_dpm_patches import ect_terms
from ed_dpm_patches.config import EctConfig, ect_weight
from guided_diffusion.config.configs import (
    ClassifierConfig,
    ClassifierTrainConfig,
    DataConfig,
    DiffusionConfig,
    RunConfig,
)
from guided_diffusion.config.create import build_classifier, build_diffusion
from guided_diffusion.config.flags import Parser
from guided_diffusion.data.datasets import find_images, open_dataset
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.data.seeding import Purpose
from guided_diffusion.distributed import process_group
from guided_diffusion.errors import InputError, counted
from guided_diffusion.models.mixed_precision import amp_dtype
from guided_diffusion.runs import logger
from guided_diffusion.sampling import setup
from guided_diffusion.training.classifier_loop import ClassifierTrainLoop
from guided_diffusion.training.resume import CHANGEABLE
from guided_diffusion.training.setup import (
    batches,
    check_steps_left,
    class_flags,
    conclude,
    find_run,
    read_classes,
    say_complete,
    starting_point,
)


def main() -> None:
    parsed = Parser(
        __doc__, DataConfig, ClassifierTrainConfig, EctConfig, ClassifierConfig, DiffusionConfig, RunConfig
    ).parse()
    run, data_config = parsed.make(RunConfig), parsed.make(DataConfig)
    train, diffusion_config = parsed.make(ClassifierTrainConfig), parsed.make(DiffusionConfig)
    if diffusion_config.timestep_respacing:
        raise InputError("--timestep_respacing: the classifier is trained on all timesteps; expected none")
    setup.begin(run)

    resume, files = starting_point(train), find_images(data_config.data_dir)
    labels, classes = read_classes(parsed, data_config, files, resume)
    config = dataclasses.replace(parsed.make(ClassifierConfig), num_classes=classes.count)
    weight = ect_weight(parsed)
    loss = f"ECT with weight {weight}" if weight else "plain cross entropy"
    logger.log(f"{counted(classes.count, 'classes')}; {loss}")
    open_images = partial(
        open_dataset,
        batch_size=train.batch_size,
        class_names=classes.names,
        reading=data_config.reading,
        resolution=config.image_size,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
    )
    dataset, val_dataset = open_images(files, labels=labels, random_crop=train.random_crop), None
    if train.val_data_dir:
        val_files = find_images(train.val_data_dir, flag="val_data_dir")
        val_dataset = open_images(val_files, labels=read_labels(val_files, data_config.labels, classes.names))
    flags = parsed.resolve(DataConfig, ClassifierTrainConfig, EctConfig, DiffusionConfig, RunConfig)
    flags |= dataclasses.asdict(config) | class_flags(classes) | {"ect": weight > 0, "labels": labels.digest()}
    # Where the rate falls until the last iteration, every step depends on when that is.
    changeable = CHANGEABLE if train.anneal_lr else CHANGEABLE | {"iterations"}
    training_run = find_run(parsed, flags, changeable, train, dataset, resume)
    purpose = "guide with (--classifier_path)" if train.noised else "judge with (the evaluator's --features)"
    if training_run.has_done(train.iterations):
        say_complete(training_run, "--iterations", train.iterations)
        conclude(purpose)
        return
    check_steps_left(training_run, "--iterations", train.iterations)
    with ExitStack() as workers:
        read = partial(batches, batch_size=train.batch_size, seed=training_run.seed)
        first, val_data = training_run.first_step, None
        data = workers.enter_context(read(dataset, first_step=first, workers=data_config.data_workers))
        if val_dataset is not None:
            val_first = -(-(first - training_run.began) // train.eval_interval)  # validation batches used already
            purposes = {"order": Purpose.VALIDATION_ORDER, "augmentation": Purpose.VALIDATION_AUGMENTATION}
            val_data = workers.enter_context(read(val_dataset, first_step=val_first, **purposes))
        loop = ClassifierTrainLoop(
            model=build_classifier(config).to(process_group.dev()),
            diffusion=build_diffusion(diffusion_config),
            data=data,
            val_data=val_data,
            config=train,
            loss_terms=partial(ect_terms, weight=weight),
            dtype=amp_dtype(config.classifier_use_fp16, run.amp_dtype),
            run=training_run,
        )
        setup.save_config(training_run.flags)
        loop.run_loop()
    conclude(purpose, labels)


if __name__ == "__main__":
    process_group.run_main(main)
