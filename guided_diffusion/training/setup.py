"""From flags to a running training: what the three training scripts share."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from guided_diffusion.config.class_labels import Classes, count_classes, run_classes
from guided_diffusion.config.configs import (
    ClassifierTrainConfig,
    DataConfig,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
    SuperResConfig,
    TrainConfig,
)
from guided_diffusion.config.create import build_diffusion
from guided_diffusion.config.flags import Given
from guided_diffusion.data.datasets import ImageDataset, find_images, fingerprint, open_dataset, warn_of_labels
from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.data.image_labels import Labels, read_labels, with_warnings
from guided_diffusion.data.order import ResumableBatches
from guided_diffusion.data.seeding import Purpose
from guided_diffusion.distributed import collectives
from guided_diffusion.distributed.progress import note_complete
from guided_diffusion.errors import InputError
from guided_diffusion.runs import best_checkpoint, logger
from guided_diffusion.runs.best_checkpoint import best_weights, newest_weights
from guided_diffusion.sampling import setup
from guided_diffusion.training import diffusion_loop
from guided_diffusion.training.diffusion_loop import TrainLoop
from guided_diffusion.training.resume import CHANGEABLE, TrainingRun, open_run
from guided_diffusion.training.timestep_samplers import create_named_schedule_sampler


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
    run_config, data_config, train = given.make(RunConfig), given.make(DataConfig), given.make(TrainConfig)
    diffusion_config = given.make(DiffusionConfig)
    setup.begin(run_config)
    setup.warn_of_unused_labels(given, config.class_cond)
    resume, files, labels, classes = starting_point(train), find_images(data_config.data_dir), None, None
    if config.class_cond:
        labels = read_run_labels(files, data_config.labels)
        classes = count_classes(given, data_config.data_dir, labels.names, resume)
        config = dataclasses.replace(config, num_classes=classes.count)
    dataset = open_dataset(
        data_dir=data_config.data_dir,
        batch_size=train.batch_size,
        image_size=image_size,
        class_cond=config.class_cond,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
        class_names=classes and classes.names,
        labels=labels,
        files=files,
        reading=data_config.reading,
    )
    flags = given.resolve(DataConfig, TrainConfig, DiffusionConfig, RunConfig) | dataclasses.asdict(config)
    flags |= class_flags(classes) | {"labels": labels and labels.digest()}
    run = find_run(given, flags, CHANGEABLE | {"iterations"}, train, dataset, resume)
    steps = min((n for n in (train.lr_anneal_steps, train.iterations) if n), default=None)
    # A run's last checkpoint bears the count of steps, unless there was one on the way after the last step.
    saves_at_end = steps is not None and (steps - 1 - run.began) % train.save_interval != 0
    limit = "--iterations" if steps == train.iterations else "--lr_anneal_steps"
    if run.has_done(steps) and (run.first_step > steps or run.number == steps or not saves_at_end):
        say_complete(run, limit, steps)
        say_what_to_use("sample from")
        return
    check_steps_left(run, limit, steps)
    diffusion = build_diffusion(diffusion_config)
    settings = dataclasses.asdict(train)
    del settings["keep"], settings["init_from"]
    with batches(dataset, train.batch_size, run, data_config.data_workers) as data:
        loop = TrainLoop(
            model=build(dataclasses.replace(config, use_fp16=False), diffusion_config).to(collectives.dev()),
            diffusion=diffusion,
            data=adapt(data),
            use_fp16=config.use_fp16,
            amp_name=run_config.amp_dtype,
            run=run,
            **settings | {"schedule_sampler": create_named_schedule_sampler(train.schedule_sampler, diffusion)},
        )
        setup.save_config(run.flags)
        loop.run_loop()
    say_where_it_is(labels)
    say_what_to_use("sample from")


def say_where_it_is(labels: Labels | None) -> None:
    """Log the checkpoints' folder and, again, the labels' warnings: by now the first ones have scrolled away."""
    logger.log(f"checkpoints: {logger.get_dir()}")
    warn_of_labels(labels)


def say_complete(run: TrainingRun, limit: str, steps: int) -> None:
    """Log that an earlier call has trained all steps, and note it in the status. limit: the flag that asks for them."""
    more = f" ({run.first_step} steps are done, {limit} {steps} asks for fewer)" if run.first_step > steps else ""
    logger.log(f"already complete: {run.model_path}{more}")
    note_complete(logger.get_dir(), run.first_step, "steps")


def say_what_to_use(purpose: str) -> None:
    """Log which of the run's files to use, as the last line of a training."""
    if collectives.get_rank() == 0:
        logger.log(f"to {purpose}: {best_weights(logger.get_dir())}")


def check_steps_left(run: TrainingRun, limit: str, steps: int | None) -> None:
    """InputError where the checkpoint to resume is at the last step or beyond it; a warning where one step is left.

    :param limit: the flag that says how many steps there are in all; steps: its value, None for no limit.
    """
    if run.state is not None or not run.number or steps is None or run.began < steps - 1:
        return
    left = f"{limit} {steps} is reached" if run.began >= steps else f"of {limit} {steps} one step is left"
    line = (
        f"--resume_checkpoint {run.model_path}: the checkpoint is at step {run.began}, {left}; give more {limit} to "
        f"train on, or --init_from {run.model_path} to begin anew with its weights"
    )
    if run.began >= steps:
        raise InputError(line)
    logger.warning(line)


def starting_point(train: TrainConfig | ClassifierTrainConfig) -> str:
    """The path of the checkpoint to resume, "" for none; of a folder its newest. A collective.

    In a folder nothing is looked up once the run has checkpoints of its own: by then there may be newer ones.
    InputError for a folder without checkpoints, or with --init_from beside it.
    """
    path = diffusion_loop.find_resume_checkpoint() or train.resume_checkpoint
    if path and train.init_from:
        raise InputError("--init_from: found together with --resume_checkpoint, expected one of them")
    if average := best_checkpoint.AVERAGE.fullmatch(Path(path).name):
        logger.warning(
            f"--resume_checkpoint {path}: an average of weights; training begins with it at step 0, with a new "
            f"optimizer. model{average[2]}.pt beside it goes on at step {int(average[2])}"
        )
    if not os.path.isdir(path):
        return path

    def newest() -> str:
        if newest_weights(logger.get_dir()):
            return ""
        return setup.file_of("resume_checkpoint", path, newest_weights)

    return collectives.from_rank_0(newest)


def class_flags(classes: Classes | None) -> dict[str, Any]:
    """What config.json says about the classes of the training data, see `Classes.from_config`."""
    if classes is None:
        return {"class_names": None}
    names = {"class_names": list(classes.names)}
    return names if len(classes.seen) == len(classes.names) else names | {"seen_classes": list(classes.seen)}


def read_run_labels(files: ImageFiles, rule: str) -> Labels:
    """The labels to train with, auto's those that the run in the log's directory has, if they can be had so."""
    before = None
    with suppress(InputError):  # a damaged config.json: find_run has the flags from another file too
        before = run_classes()
    if rule == "auto" and before is not None and before.names:
        found = read_labels(files, rule, before.names)
        if found.names == list(before.names):
            return with_warnings(files, found)
    return read_labels(files, rule)


def find_run(
    given: Given,
    flags: dict[str, Any],
    changeable: frozenset[str],
    train: TrainConfig | ClassifierTrainConfig,
    dataset: ImageDataset,
    resume: str,
) -> TrainingRun:
    """The run that the flags describe, as far as it has come in the log's directory. See `open_run`.

    :param flags: all of them; changeable: the names of those that may differ from before.
    :param resume: the `starting_point`.
    """
    processes = collectives.get_world_size()
    facts = {"processes": processes, "global_batch": processes * train.batch_size}
    facts["images"] = fingerprint(dataset, flags["data_dir"])
    init_from = train.init_from
    if os.path.isdir(init_from):
        init_from = collectives.from_rank_0(lambda: setup.file_of("init_from", init_from, best_weights))
    defaults = given.defaults | {"labels": flags["labels"]}  # a digest; the first runs noted none
    return open_run(
        logger.get_dir(), flags | facts, changeable, flags["seed"], train.keep, resume, init_from, defaults
    )


def batches(dataset: ImageDataset, batch_size: int, run: TrainingRun, workers: int) -> ResumableBatches:
    """This rank's batches from the run's next step on, read by so many processes; to be used in a with-block."""
    rank, world_size = collectives.get_rank(), collectives.get_world_size()
    return ResumableBatches(dataset, batch_size, run.seed, run.first_step, rank, world_size, workers=workers)


def validation_batches(dataset: ImageDataset, batch_size: int, run: TrainingRun, interval: int) -> ResumableBatches:
    """This rank's validation batches, of which every interval-th step uses one."""
    made = -(-(run.first_step - run.began) // interval)
    rank, world_size = collectives.get_rank(), collectives.get_world_size()
    purposes = (Purpose.VALIDATION_ORDER, Purpose.VALIDATION_AUGMENTATION)
    return ResumableBatches(dataset, batch_size, run.seed, made, rank, world_size, *purposes)
