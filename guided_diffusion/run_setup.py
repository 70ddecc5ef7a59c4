"""What every script does before its work: join the peers, open the log, read checkpoints and their configs."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from . import checkpoint, dist_util, logger, run_directory, run_log
from .amp import amp_dtype
from .configs import ClassifierConfig, DiffusionConfig, ModelConfig, RunConfig, SamplingConfig, SuperResConfig
from .errors import InputError
from .flags import Given, architecture_from
from .frozen import Frozen
from .host_memory import keep_freed_memory
from .image_datasets import list_class_names
from .pretrained import load_network
from .script_util import build_classifier

Config = TypeVar("Config", ModelConfig, SuperResConfig)

# Steps a rank after which compiling, minutes of work, has surely paid for itself on a GPU.
_LONG_RUN = 5000


def begin(run: RunConfig) -> Path:
    """Join the process group, claim the run's directory, open the log and seed the global generators.

    Returns the directory. InputError on all ranks where another process owns it.
    """
    keep_freed_memory()
    dist_util.setup_dist()
    directory = logger.make_directory(run.log_dir or None)
    dist_util.from_rank_0(lambda: run_directory.claim(directory, dist_util.fail))
    logger.configure(dir=directory)
    run_log.keep_warnings()
    # Different ranks see different data and noise; NumPy accepts 32 bits.
    seed = (run.seed * 10007 + dist_util.get_rank()) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return directory


def checkpoint_config(flag: str, path: str) -> dict[str, Any] | None:
    """The config.json beside the checkpoint that a flag names; InputError when there is no such checkpoint."""
    if not path:
        raise InputError(f"--{flag}: missing, expected the path of a checkpoint")
    checkpoint.check_there(f"--{flag} {path}", path)  # rather than complain about flags that do not fit
    saved = checkpoint.read_config(path)
    if saved is not None and not saved.get("class_cond", True):
        saved = {name: value for name, value in saved.items() if name != "num_classes"}  # it has no classes
    return saved


def class_names(path: str) -> list[str]:
    """The names of a checkpoint's classes, as far as its config.json has them."""
    names = (checkpoint.read_config(path) or {}).get("class_names")
    return [str(name) for name in names] if isinstance(names, list) else []


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
    batches = sampling.num_samples / (sampling.batch_size * dist_util.get_world_size())
    return dist_util.dev().type == "cuda" and batches * steps >= _LONG_RUN


def model_configs(given: Given, path: str, config_class: type[Config]) -> tuple[Config, DiffusionConfig]:
    """The configs of the diffusion model of --model_path and of its process: from flags and its config.json.

    InputError when there is no such checkpoint, or the flags contradict it.
    """
    saved = checkpoint_config("model_path", path)
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
    return Frozen(load_network(build, path, dist_util.dev()), dtype, compile)


def count_classes(given: Given, data_dir: str) -> tuple[int, list[str]]:
    """Number and names of a training folder's classes; --num_classes when given.

    InputError when the folder holds more classes than --num_classes; a note when it holds fewer.
    """
    names = list_class_names(data_dir)
    wanted = given.values.get("num_classes")
    if wanted is None:
        return len(names), names
    if len(names) > wanted:
        raise InputError(f"--num_classes: found {wanted}, but {data_dir} has {len(names)} classes")
    if len(names) < wanted:
        logger.warn(f"--num_classes {wanted}, but {data_dir} has {len(names)} classes: the others stay untrained")
    return wanted, names


def save_config(values: dict[str, Any]) -> None:
    """Write the flags that make a checkpoint beside where it will be, from rank 0."""
    if dist_util.get_rank() == 0:
        checkpoint.write_config(logger.get_dir(), values)
