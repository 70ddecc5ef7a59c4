"""Set-up of a training from its flags, shared by the three training scripts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
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
from guided_diffusion.data.order import resumable_batches
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


class Training:
    """A training script's images, labels and run. Joins the process group, opens the log and looks for what to resume.

    :param train: the flags of the training loop.
    :param class_cond: whether to read labels and count classes; `labels` and `classes` are None otherwise.
    """

    def __init__(self, parsed: ParsedFlags, train: TrainConfig | ClassifierTrainConfig, class_cond: bool):
        self.parsed, self.train, self.data = parsed, train, parsed.make(DataConfig)
        setup.begin(parsed.make(RunConfig))
        setup.warn_of_unused_labels(parsed, class_cond)
        self.resume, self.files = starting_point(train), find_images(self.data.data_dir)
        self.labels = _read_run_labels(self.files, self.data.labels) if class_cond else None
        self.classes: Classes | None = None
        if class_cond:
            count = partial(count_classes, parsed, self.data.data_dir, self.labels.names, self.resume)
            self.classes = collectives.from_rank_0(count)

    def open_dataset(
        self, files: ImageFiles, labels: Labels | None, image_size: int, channels: int, random_crop: bool = False
    ) -> ImageDataset:
        """Open images of training or validation, their labels numbered by the network's classes."""
        return open_dataset(
            files,
            self.train.batch_size,
            labels,
            self.classes and self.classes.names,
            self.data.reading,
            resolution=image_size,
            random_crop=random_crop,
            random_flip=self.data.random_flip,
            channels=channels,
        )

    def find_run(self, config: Any, dataset: ImageDataset, changeable: Collection[str], **more: Any) -> TrainingRun:
        """Return the run that the flags describe, with its progress so far in the log's directory. See `open_run`.

        :param config: of the network; more: flags of other config classes.
        :param changeable: names of flags that may differ from before, besides CHANGEABLE.
        """
        flags = self.parsed.resolve(DataConfig, self.train, DiffusionConfig, RunConfig, config) | more
        flags["class_names"] = self.classes and list(self.classes.names)
        if self.classes and len(self.classes.seen) != len(self.classes.names):  # see `Classes.from_config`
            flags["seen_classes"] = list(self.classes.seen)
        processes = collectives.get_world_size()
        flags |= {"labels": self.labels and self.labels.digest(), "images": fingerprint(dataset, self.data.data_dir)}
        flags |= {"processes": processes, "global_batch": processes * self.train.batch_size}
        init_from = self.train.init_from
        if os.path.isdir(init_from):
            init_from = collectives.from_rank_0(lambda: setup.file_of("init_from", init_from, best_weights))
        defaults = self.parsed.defaults | {"labels": flags["labels"]}  # a digest; the first runs noted none
        return open_run(flags, CHANGEABLE.union(changeable), self.resume, init_from, defaults)

    def is_complete(self, run: TrainingRun, limit: str, steps: int | None, purpose: str, saved: bool = True) -> bool:
        """Return whether an earlier call has trained all steps, log it and note it in the status; else check that there
        are steps left.

        :param limit: the flag that sets the number of steps; steps: its value, None for no limit.
        :param saved: whether the last checkpoint bears the number that the end gives it.
        """
        done = run.state is not None and steps is not None and run.first_step >= steps
        if not (done and saved):
            check_steps_left(run, limit, steps)
            return False
        more = f" ({run.first_step} steps are done, {limit} {steps} asks for fewer)" if run.first_step > steps else ""
        logger.log(f"already complete: {run.model_path}{more}")
        note_complete(logger.get_dir(), run.first_step, "steps")
        say_what_to_use(purpose)
        return True

    def conclude(self, purpose: str) -> None:
        """Log where the checkpoints are and which to use; repeat the labels' warnings, which have scrolled away."""
        logger.log(f"checkpoints: {logger.get_dir()}")
        warn_of_labels(self.labels)
        say_what_to_use(purpose)


def train_diffusion_model(
    parsed: ParsedFlags,
    config: ModelConfig | SuperResConfig,
    image_size: int,
    build: Callable[..., nn.Module],
    adapt: Callable[[Iterator], Iterator] = iter,
) -> None:
    """Train on the images of --data_dir for as many steps as the flags say.

    :param config: of the network; its num_classes is counted in the folder when the model is conditional.
    :param image_size: side of the training images, pixels.
    :param build: build(config, diffusion_config) -> network.
    :param adapt: maps the iterator of (images, conditioning) to the one to train on.
    """
    train, diffusion_config = parsed.make(TrainConfig), parsed.make(DiffusionConfig)
    training = Training(parsed, train, config.class_cond)
    if training.classes:
        config = dataclasses.replace(config, num_classes=training.classes.count)
    dataset = training.open_dataset(training.files, training.labels, image_size, config.in_channels)
    run = training.find_run(config, dataset, changeable={"iterations"})
    steps = min((n for n in (train.lr_anneal_steps, train.iterations) if n), default=None)
    # A run's last checkpoint bears the count of steps, unless there was one on the way after the last step.
    saves_at_end = steps is not None and (steps - 1 - run.began) % train.save_interval != 0
    saved = not saves_at_end or run.first_step > steps or run.number == steps
    limit = "--iterations" if steps == train.iterations else "--lr_anneal_steps"
    if training.is_complete(run, limit, steps, "sample from", saved):
        return
    diffusion = build_diffusion(diffusion_config)
    settings = dataclasses.asdict(train)
    del settings["keep"], settings["init_from"]
    setup.warn_of_unused_amp(parsed, config.use_fp16)
    workers = training.data.data_workers
    with resumable_batches(dataset, train.batch_size, run.seed, run.first_step, workers=workers) as data:
        loop = TrainLoop(
            model=build(config, diffusion_config).to(collectives.dev()),
            diffusion=diffusion,
            data=adapt(data),
            use_fp16=config.use_fp16,
            amp_name=parsed.make(RunConfig).amp_dtype,
            run=run,
            **settings | {"schedule_sampler": create_named_schedule_sampler(train.schedule_sampler, diffusion)},
        )
        setup.save_config(run.flags)
        loop.run_loop()
    training.conclude("sample from")


def say_what_to_use(purpose: str) -> None:
    """Log which of the run's files to use, as the last line of a training."""
    if collectives.get_rank() == 0:
        logger.log(f"to {purpose}: {best_weights(logger.get_dir())}")


def check_steps_left(run: TrainingRun, limit: str, steps: int | None) -> None:
    """Raise InputError where the checkpoint to resume has reached the last step; warn where one step is left."""
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
    """Return the path of the checkpoint to resume, the newest of a folder, or "" for none. A collective.

    A folder is ignored once the run has checkpoints of its own: by then it may hold newer ones.
    InputError for a folder without checkpoints, or together with --init_from.
    """
    path = diffusion_loop.find_resume_checkpoint() or train.resume_checkpoint
    if path and train.init_from:
        raise InputError("--init_from: found together with --resume_checkpoint, expected one of them")
    if average := best_checkpoint.AVERAGE.fullmatch(Path(path).name):
        logger.warning(
            f"--resume_checkpoint {path}: an average of weights; training begins with it at step 0, with a new "
            f"optimizer. model{average[2]}.pt beside it resumes at step {int(average[2])}"
        )
    if not os.path.isdir(path):
        return path

    def newest() -> str:
        if newest_weights(logger.get_dir()):
            return ""
        return setup.file_of("resume_checkpoint", path, newest_weights)

    return collectives.from_rank_0(newest)


def _read_run_labels(files: ImageFiles, rule: str) -> Labels:
    """Return the images' labels: with rule auto, those that the run in the log's directory has, where they fit."""
    before = None
    with suppress(InputError):  # a damaged config.json: open_run has the flags from another file too
        before = run_classes()
    if rule == "auto" and before is not None and before.names:
        found = read_labels(files, rule, before.names)
        if found.names == list(before.names):
            return with_warnings(files, found)
    return read_labels(files, rule)
