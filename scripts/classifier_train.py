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
from guided_diffusion.config.class_labels import count_classes
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
from guided_diffusion.distributed import collectives, shutdown
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
    find_run,
    read_run_labels,
    say_complete,
    say_what_to_use,
    say_where_it_is,
    starting_point,
    validation_batches,
)


def main() -> None:
    given = Parser(
        __doc__, DataConfig, ClassifierTrainConfig, EctConfig, ClassifierConfig, DiffusionConfig, RunConfig
    ).parse()
    run, data_config = given.make(RunConfig), given.make(DataConfig)
    train, diffusion_config = given.make(ClassifierTrainConfig), given.make(DiffusionConfig)
    if diffusion_config.timestep_respacing:
        raise InputError("--timestep_respacing: the classifier is trained on all timesteps; expected none")
    setup.begin(run)

    resume, files = starting_point(train), find_images(data_config.data_dir)
    labels = read_run_labels(files, data_config.labels)
    classes = count_classes(given, data_config.data_dir, labels.names, resume)
    config = dataclasses.replace(given.make(ClassifierConfig), num_classes=classes.count)
    weight = ect_weight(given)
    loss = f"ECT with weight {weight}" if weight else "plain cross entropy"
    logger.log(f"{counted(classes.count, 'classes')}; {loss}")
    dataset = load(
        data_config.data_dir, data_config, train, config, classes.names, train.random_crop, labels=labels, files=files
    )
    val_files = find_images(train.val_data_dir, flag="val_data_dir") if train.val_data_dir else None
    val_dataset = load(
        train.val_data_dir, data_config, train, config, classes.names, False, labels=data_config.labels, files=val_files
    )
    flags = given.resolve(DataConfig, ClassifierTrainConfig, EctConfig, DiffusionConfig, RunConfig)
    flags |= dataclasses.asdict(config) | class_flags(classes) | {"ect": weight > 0, "labels": labels.digest()}
    # Where the rate falls until the last iteration, every step depends on when that is.
    changeable = CHANGEABLE if train.anneal_lr else CHANGEABLE | {"iterations"}
    training_run = find_run(given, flags, changeable, train, dataset, resume)
    purpose = "guide with (--classifier_path)" if train.noised else "judge with (the evaluator's --features)"
    if training_run.has_done(train.iterations):
        say_complete(training_run, "--iterations", train.iterations)
        say_what_to_use(purpose)
        return
    check_steps_left(training_run, "--iterations", train.iterations)
    with ExitStack() as workers:
        data = workers.enter_context(batches(dataset, train.batch_size, training_run, data_config.data_workers))
        val_data = None
        if val_dataset is not None:
            val_batches = validation_batches(val_dataset, train.batch_size, training_run, train.eval_interval)
            val_data = workers.enter_context(val_batches)
        loop = ClassifierTrainLoop(
            model=build_classifier(dataclasses.replace(config, classifier_use_fp16=False)).to(collectives.dev()),
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
    say_where_it_is(labels)
    say_what_to_use(purpose)


def load(data_dir, data_config, train, config, class_names, random_crop, **found):
    """The images of a folder, with what was found there; None for no folder."""
    if not data_dir:
        return None
    return open_dataset(
        data_dir=data_dir,
        batch_size=train.batch_size,
        image_size=config.image_size,
        class_cond=True,
        random_crop=random_crop,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=class_names,
        reading=data_config.reading,
        **found,
    )


if __name__ == "__main__":
    shutdown.run_main(main)
