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
from guided_diffusion.config.flags import ParsedFlags
from guided_diffusion.data.datasets import ImageDataset, find_images, fingerprint, open_dataset, warn_of_labels
from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.data.image_labels import Labels, read_labels, with_warnings
from guided_diffusion.data.order import ResumableBatches
from guided_diffusion.distributed import process_group
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
    parsed: ParsedFlags,
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
    run_config, data_config, train = parsed.make(RunConfig), parsed.make(DataConfig), parsed.make(TrainConfig)
    diffusion_config = parsed.make(DiffusionConfig)
    setup.begin(run_config)
    setup.warn_of_unused_labels(parsed, config.class_cond)
    resume, files, labels, classes = starting_point(train), find_images(data_config.data_dir), None, None
    if config.class_cond:
        labels, classes = read_classes(parsed, data_config, files, resume)
        config = dataclasses.replace(config, num_classes=classes.count)
    dataset = open_dataset(
        files,
        train.batch_size,
        labels,
        classes and classes.names,
        data_config.reading,
        resolution=image_size,
        random_flip=data_config.random_flip,
        channels=config.in_channels,
    )
    flags = parsed.resolve(DataConfig, TrainConfig, DiffusionConfig, RunConfig) | dataclasses.asdict(config)
    flags |= class_flags(classes) | {"labels": labels and labels.digest()}
    run = find_run(parsed, flags, CHANGEABLE | {"iterations"}, train, dataset, resume)
    steps = min((n for n in (train.lr_anneal_steps, train.iterations) if n), default=None)
    # A run's last checkpoint bears the count of steps, unless there was one on the way after the last step.
    saves_at_end = steps is not None and (steps - 1 - run.began) % train.save_interval != 0
    limit = "--iterations" if steps == train.iterations else "--lr_anneal_steps"
    if run.has_done(steps) and (run.first_step > steps or run.number == steps or not saves_at_end):
        say_complete(run, limit, steps)
        conclude("sample from")
        return
    check_steps_left(run, limit, steps)
    diffusion = build_diffusion(diffusion_config)
    settings = dataclasses.asdict(train)
    del settings["keep"], settings["init_from"]
    with batches(dataset, train.batch_size, run.seed, run.first_step, workers=data_config.data_workers) as data:
        loop = TrainLoop(
            model=build(config, diffusion_config).to(process_group.dev()),
            diffusion=diffusion,
            data=adapt(data),
            use_fp16=config.use_fp16,
            amp_name=run_config.amp_dtype,
            run=run,
            **settings | {"schedule_sampler": create_named_schedule_sampler(train.schedule_sampler, diffusion)},
        )
        setup.save_config(run.flags)
        loop.run_loop()
    conclude("sample from", labels)


def say_complete(run: TrainingRun, limit: str, steps: int) -> None:
    """Log that an earlier call has trained all steps, and note it in the status. limit: the flag that asks for them."""
    more = f" ({run.first_step} steps are done, {limit} {steps} asks for fewer)" if run.first_step > steps else ""
    logger.log(f"already complete: {run.model_path}{more}")
    note_complete(logger.get_dir(), run.first_step, "steps")


def conclude(purpose: str, labels: Labels | None = None) -> None:
    """Log where the checkpoints are and which to use, and the labels' warnings again, which have scrolled away."""
    logger.log(f"checkpoints: {logger.get_dir()}")
    warn_of_labels(labels)
    if process_group.get_rank() == 0:
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

    return process_group.from_rank_0(newest)


def class_flags(classes: Classes | None) -> dict[str, Any]:
    """What config.json says about the classes of the training data, see `Classes.from_config`."""
    if classes is None:
        return {"class_names": None}
    names = {"class_names": list(classes.names)}
    return names if len(classes.seen) == len(classes.names) else names | {"seen_classes": list(classes.seen)}


def read_classes(
    parsed: ParsedFlags, config: DataConfig, files: ImageFiles, resume: str
) -> tuple[Labels, Classes]:
    """Return the labels of the training images and the network's classes; see `read_labels` and `count_classes`."""
    labels = _read_run_labels(files, config.labels)
    return labels, count_classes(parsed, config.data_dir, labels.names, resume)


def _read_run_labels(files: ImageFiles, rule: str) -> Labels:
    """Return the images' labels: with rule auto, those that the run in the log's directory has, where they fit."""
    before = None
    with suppress(InputError):  # a damaged config.json: find_run has the flags from another file too
        before = run_classes()
    if rule == "auto" and before is not None and before.names:
        found = read_labels(files, rule, before.names)
        if found.names == list(before.names):
            return with_warnings(files, found)
    return read_labels(files, rule)


def find_run(
    parsed: ParsedFlags,
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
    processes = process_group.get_world_size()
    facts = {"processes": processes, "global_batch": processes * train.batch_size}
    facts["images"] = fingerprint(dataset, flags["data_dir"])
    init_from = train.init_from
    if os.path.isdir(init_from):
        init_from = process_group.from_rank_0(lambda: setup.file_of("init_from", init_from, best_weights))
    defaults = parsed.defaults | {"labels": flags["labels"]}  # a digest; the first runs noted none
    return open_run(flags | facts, changeable, resume, init_from, defaults)


def batches(dataset: ImageDataset, batch_size: int, seed: int, first_step: int, **options: Any) -> ResumableBatches:
    """This rank's batches from a step on, to be used in a with-block; options: of `ResumableBatches`."""
    rank, world_size = process_group.get_rank(), process_group.get_world_size()
    return ResumableBatches(dataset, batch_size, seed, first_step, rank, world_size, **options)
