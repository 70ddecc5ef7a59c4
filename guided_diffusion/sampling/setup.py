"""What every script does before its work: join the peers, open the log, read checkpoints and their configs."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    ClassifierConfig,
    DiffusionConfig,
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    SuperResConfig,
)
from guided_diffusion.config.create import build_classifier
from guided_diffusion.config.flags import Given, architecture_from
from guided_diffusion.distributed import collectives, process_group, shutdown
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io import checkpoint, checkpoint_flags
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.mixed_precision import amp_dtype
from guided_diffusion.runs import failure_log, logger, run_directory
from guided_diffusion.runs.best_checkpoint import best_weights, warn_of_start
from guided_diffusion.sampling.noise import LabelPlan
from guided_diffusion.sampling.pretrained import load_network
from guided_diffusion.system.malloc import keep_freed_memory

Config = TypeVar("Config", ModelConfig, SuperResConfig)

# Steps a rank after which compiling, minutes of work, has surely paid for itself on a GPU.
_LONG_RUN = 5000


def begin(run: RunConfig) -> Path:
    """Join the process group, claim the run's directory, open the log and seed the global generators.

    Returns the directory. InputError on all ranks where another process owns it.
    """
    keep_freed_memory()
    process_group.setup_dist()
    directory = logger.make_directory(run.log_dir or None)
    collectives.from_rank_0(lambda: run_directory.claim(directory, shutdown.fail))
    logger.configure(dir=directory)
    failure_log.keep_warnings()
    # Different ranks see different data and noise; NumPy accepts 32 bits.
    seed = (run.seed * 10007 + collectives.get_rank()) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return directory


def checkpoint_config(flag: str, path: str, expected: str) -> dict[str, Any] | None:
    """The config.json beside the checkpoint that a flag names.

    InputError when there is no such checkpoint, or it is known to be of another kind than `expected`.
    """
    if not path:
        raise InputError(f"--{flag}: missing, expected the path of a checkpoint")
    return checkpoint.read_network_config(f"--{flag} {path}", path, expected)


def output_file(flag: str, path: str) -> Path | None:
    """Where a flag wants a file; None for "". InputError now, not after the work, when it cannot be written."""
    if not path:
        return None
    target = Path(path).absolute()
    nearest = next(folder for folder in target.parents if folder.exists())
    if target.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--{flag} {path}: cannot be written, expected the name of a file")
    return target


def wants_compiling(sampling: SamplingConfig, steps: int) -> bool:
    """Whether to compile: as --compile says, else on CUDA where a rank makes enough steps to pay for it."""
    if sampling.compile is not None:
        return sampling.compile
    batches = sampling.num_samples / (sampling.batch_size * collectives.get_world_size())
    return collectives.dev().type == "cuda" and batches * steps >= _LONG_RUN


def model_configs(given: Given, path: str, config_class: type[Config]) -> tuple[Config, DiffusionConfig]:
    """The configs of the diffusion model of --model_path and of its process: from flags and its config.json.

    InputError when there is no such checkpoint, or the flags contradict it.
    """
    expected = checkpoint_flags.SUPER_RES if config_class is SuperResConfig else checkpoint_flags.DIFFUSION_MODEL
    saved = checkpoint_config("model_path", path, expected)
    return architecture_from(given, config_class, saved, path), architecture_from(given, DiffusionConfig, saved, path)


def load_model(
    build: Callable[..., nn.Module],
    config: Config,
    diffusion_config: DiffusionConfig,
    path: str,
    run: RunConfig,
    compile: bool = False,
) -> Frozen:
    """The diffusion model, frozen, on this rank's device; InputError for a checkpoint that does not fit.

    :param build: build_model or build_super_res_model.
    """
    plain = dataclasses.replace(config, use_fp16=False)  # autocast, not half weights
    return _load(lambda: build(plain, diffusion_config), path, amp_dtype(config.use_fp16, run.amp_dtype), compile)


def load_classifier(config: ClassifierConfig, path: str, run: RunConfig, compile: bool = False) -> Frozen:
    """The noise-aware classifier, as `load_model` loads the diffusion model."""
    plain = dataclasses.replace(config, classifier_use_fp16=False)
    return _load(lambda: build_classifier(plain), path, amp_dtype(config.classifier_use_fp16, run.amp_dtype), compile)


def _load(build: Callable[[], nn.Module], path: str, dtype: torch.dtype | None, compile: bool) -> Frozen:
    return Frozen(load_network(build, path, collectives.dev()), dtype, compile)


def choose_files(given: Given, *flags: str) -> Given:
    """The flags with a file in place of every folder of a training that one of `flags` names: see `best_weights`.

    A run that is resumed keeps the file that it began with. InputError for a folder without weights. A collective.
    """
    chosen = collectives.from_rank_0(lambda: _choose_files(given, flags))
    return dataclasses.replace(given, values=given.values | chosen)


def _choose_files(given: Given, flags: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for flag in flags:
        path = given.values.get(flag, "")
        if os.path.isdir(path):
            before = run_directory.read_manifest(Path(logger.get_dir())).get(flag)
            kept = isinstance(before, str) and Path(before).parent == Path(path) and os.path.isfile(before)
            chosen[flag] = before if kept else file_of(flag, path, best_weights)
            if kept:
                logger.log(f"--{flag} {path}: {Path(before).name}, as when the run here began")
        if flag == "model_path":
            warn_of_start(chosen.get(flag, path))
    return chosen


def file_of(flag: str, folder: str, find: Callable[[str], str | None]) -> str:
    """The file that `find` takes from a folder given to a flag; InputError where there is none."""
    found = find(folder)
    if found is None:
        raise InputError(
            f"--{flag} {folder}: found a folder, expected a regular file or a training's folder with model*.pt in it"
        )
    logger.log(f"--{flag} {folder}: taking {Path(found).name}")
    return found


def plan_labels(config: LabelConfig, classes: Classes) -> LabelPlan:
    """The labels of a sampling run, by --classes and --balanced, once the log has said which classes these are."""
    plan = LabelPlan(config.classes, config.balanced, classes)
    if classes.names:
        logger.log(f"classes sampled: {classes.listed(plan.classes)}")
    if not config.classes and (unseen := classes.count - len(plan.classes)):
        logger.log(f"not sampled: {unseen} of {classes.count} labels, which were not in the training data")
    elif not config.classes and classes.seen is None:
        count = counted(classes.count, "labels")
        logger.log(f"sampling all {count}: nothing beside the checkpoint says which training has seen")
    return plan


def warn_of_unused_labels(given: Given, class_cond: bool) -> None:
    """Say that --labels, where it is given, does nothing for a network without classes."""
    rule = given.values.get("labels")
    if rule and not class_cond:
        logger.warning(f"--labels {rule}: not read, without --class_cond True the network has no classes")


def save_config(values: dict[str, Any]) -> None:
    """Write the flags that make a checkpoint beside where it will be, from rank 0."""
    if collectives.get_rank() == 0:
        checkpoint.write_config(logger.get_dir(), values)
