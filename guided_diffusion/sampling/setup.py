"""The start of every script: join the process group, open the log, read checkpoints and their configs."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import (
    CacheConfig,
    DiffusionConfig,
    LabelConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    SuperResConfig,
)
from guided_diffusion.config.flags import ParsedFlags, architecture_from
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.distributed import collectives, process_group, shutdown
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io import checkpoint, checkpoint_flags
from guided_diffusion.models.feature_cache import FeatureCache, whole_steps
from guided_diffusion.models.inference import Frozen
from guided_diffusion.models.mixed_precision import amp_dtype
from guided_diffusion.runs import failure_log, logger, run_directory
from guided_diffusion.runs.best_checkpoint import best_weights, warn_of_start
from guided_diffusion.sampling.noise import LabelPlan
from guided_diffusion.sampling.pretrained import load_network
from guided_diffusion.system.malloc import keep_freed_memory

Config = TypeVar("Config", ModelConfig, SuperResConfig)

# Flags in which networks that see the same x_t must agree, and further ones of two diffusion models.
IMAGE_FLAGS = ("image_size", "in_channels")
PROCESS_FLAGS = ("noise_schedule", "diffusion_steps", "predict_xstart", "rescale_timesteps")

# sqrt(abar) of the first timestep below which a warning is due. The linear schedule's least is 6e-3, the cosine's 5e-5.
_LEAST_SHARE = 1e-3

# Evaluations per rank after which compiling, which takes minutes, has surely paid off on a GPU.
_LONG_RUN = 5000


def begin(run: RunConfig) -> Path:
    """Join the process group, claim the run's directory, open the log and seed the global generators.

    Returns the directory. InputError on all ranks where another process owns it.
    """
    keep_freed_memory()
    process_group.setup_dist()
    if (first := collectives.broadcast_object(run.amp_dtype)) != run.amp_dtype:
        raise InputError(f"--amp_dtype auto: found {first} and elsewhere {run.amp_dtype}, expected one of them by name")
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
    """Return the config.json beside a flag's checkpoint; InputError if that is missing or not of kind `expected`."""
    if not path:
        raise InputError(f"--{flag}: missing, expected the path of a checkpoint")
    return checkpoint.read_network_config(f"--{flag} {path}", path, expected)


def output_file(flag: str, path: str) -> Path | None:
    """Return the path of a flag's output file; None for "". InputError at once, not after the work, if not writable."""
    if not path:
        return None
    target = Path(path).absolute()
    nearest = next(folder for folder in target.parents if folder.exists())
    if target.is_dir() or not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--{flag} {path}: cannot be written, expected the name of a file")
    return target


def wants_compiling(sampling: SamplingConfig, steps: int) -> bool:
    """Return whether to compile: as --compile says, else on CUDA if each rank evaluates so often that it profits."""
    if sampling.compile is not None:
        return sampling.compile
    batches = sampling.num_samples / (sampling.batch_size * collectives.get_world_size())
    return collectives.dev().type == "cuda" and batches * sampling.evaluations(steps) >= _LONG_RUN


def model_configs(parsed: ParsedFlags, path: str, config_class: type[Config]) -> tuple[Config, DiffusionConfig]:
    """Return the configs of --model_path's network and process, from the flags and its config.json.

    InputError when there is no such checkpoint, or the flags contradict it.
    """
    expected = checkpoint_flags.SUPER_RES if config_class is SuperResConfig else checkpoint_flags.DIFFUSION_MODEL
    saved = checkpoint_config("model_path", path, expected)
    return architecture_from(parsed, config_class, saved, path), architecture_from(parsed, DiffusionConfig, saved, path)


def second_model_configs(
    flag: str, path: str, model: ModelConfig, diffusion: DiffusionConfig
) -> tuple[ModelConfig, DiffusionConfig, bool]:
    """Return the configs of a further diffusion model, and whether a config.json beside it tells them.

    Without, they are the first model's, as those of the published pairs are. InputError when there is no such
    checkpoint.
    """
    saved = checkpoint_config(flag, path, checkpoint_flags.DIFFUSION_MODEL)
    values = saved or dataclasses.asdict(model) | dataclasses.asdict(diffusion)
    own = [architecture_from(ParsedFlags({}), kind, values, path) for kind in (ModelConfig, DiffusionConfig)]
    return *own, bool(saved)


def check_same(
    names: Sequence[str], ours: Mapping[str, Any], our_path: str, theirs: Mapping[str, Any], their_path: str
) -> None:
    """Raise InputError for the first of some flags that differs between two checkpoints."""
    for name in names:
        if ours[name] != theirs[name]:
            raise InputError(f"--{name}: {our_path} has {ours[name]}, but {their_path} has {theirs[name]}")


def check_same_process(
    model: ModelConfig, diffusion: DiffusionConfig, path: str,
    other_model: ModelConfig, other_diffusion: DiffusionConfig, other_path: str,
) -> None:  # fmt: skip
    """Raise InputError where two diffusion models cannot be evaluated for the same x_t, or predict something else."""
    first, second = (
        dataclasses.asdict(images) | dataclasses.asdict(process)
        for images, process in ((model, diffusion), (other_model, other_diffusion))
    )
    check_same(IMAGE_FLAGS + PROCESS_FLAGS, first, path, second, other_path)


def load_frozen(
    build: Callable[[], nn.Module], path: str, use_fp16: bool, run: RunConfig, compile: bool = False
) -> Frozen:
    """Load a network for sampling onto this rank's device; InputError for a checkpoint that does not fit."""
    device = collectives.dev()
    dtype = amp_dtype(use_fp16, run.amp_dtype, path, device)
    return Frozen(load_network(build, path, device), dtype, compile)


def read_cache(parsed: ParsedFlags) -> CacheConfig:
    """Return the feature cache that flags ask for; InputError where they would do nothing."""
    cache = parsed.make(CacheConfig)
    for name in ("cache_depth", "cache_schedule"):
        if name in parsed.values and cache.cache_every == 1:
            raise InputError(f"--{name}: found without --cache_every above 1, expected both")
    return cache


def with_cache(model: nn.Module, cache: CacheConfig, num_steps: int) -> nn.Module:
    """Return a model in a feature cache of its own; by default the model itself. :param num_steps: of a run.

    A warning says where only the first step evaluates the whole model.
    """
    if cache.cache_every == 1:
        return model
    if len(whole_steps(num_steps, cache.cache_every, cache.cache_schedule)) == 1 < num_steps:
        logger.warning(
            f"--cache_every {cache.cache_every}: found for {num_steps} steps: the whole model is evaluated at the "
            "first alone, which may ruin the images"
        )
    return FeatureCache(model, num_steps, cache.cache_every, cache.cache_depth, cache.cache_schedule)


def choose_files(parsed: ParsedFlags, *flags: str) -> ParsedFlags:
    """Replace the training folder that any of `flags` names by the checkpoint to use, see `best_weights`.

    A resumed run keeps the file that it began with. InputError for a folder without weights. A collective.
    """

    def choose() -> dict[str, str]:
        chosen = {flag: parsed.values.get(flag, "") for flag in flags}
        for flag, path in chosen.items():
            if os.path.isdir(path):
                before = run_directory.read_manifest(Path(logger.get_dir())).get(flag)
                kept = isinstance(before, str) and Path(before).parent == Path(path) and os.path.isfile(before)
                chosen[flag] = before if kept else file_of(flag, path, best_weights)
                if kept:
                    logger.log(f"--{flag} {path}: {Path(before).name}, as when the run here began")
            if flag == "model_path":
                warn_of_start(chosen[flag])
        return {flag: path for flag, path in chosen.items() if path}

    return dataclasses.replace(parsed, values=parsed.values | collectives.from_rank_0(choose))


def file_of(flag: str, folder: str, find: Callable[[str], str | None]) -> str:
    """Return the file that `find` takes from the folder that a flag names; InputError where there is none."""
    found = find(folder)
    if found is None:
        raise InputError(
            f"--{flag} {folder}: found a folder, expected a regular file or a training's folder with model*.pt in it"
        )
    logger.log(f"--{flag} {folder}: taking {Path(found).name}")
    return found


def trained_file(flag: str, path: str) -> str:
    """Return a checkpoint's path; of a training's folder that of the weights to use, see `best_weights`."""
    return file_of(flag, path, best_weights) if os.path.isdir(path) else path


def plan_labels(config: LabelConfig, classes: Classes | None) -> LabelPlan | None:
    """Return the labels of a sampling run, by --classes and --balanced, and log which classes these are.

    None for networks without classes; InputError where the flags ask for some.
    """
    if classes is None:
        if config.classes or config.balanced:
            raise InputError("--classes, --balanced: found for networks without classes, expected neither")
        return None
    plan = LabelPlan(config.classes, config.balanced, classes)
    if classes.names:
        logger.log(f"classes sampled: {classes.listed(plan.classes)}")
    if not config.classes and (unseen := classes.count - len(plan.classes)):
        logger.log(f"not sampled: {unseen} of {classes.count} labels, which were not in the training data")
    elif not config.classes and classes.seen is None:
        count = counted(classes.count, "labels")
        logger.log(f"sampling all {count}: nothing beside the checkpoint says which training has seen")
    return plan


def warn_of_noisy_start(sampling: SamplingConfig, diffusion: SpacedDiffusion, guided: Sequence[int]) -> None:
    """Warn that guidance begins where x_t has so little of x_0 that the guidance of it may ruin the images.

    All samplers but DDPM guide x_0, by the gradient times (1 - abar) / sqrt(abar).

    :param guided: the timesteps at which there is guidance.
    """
    if not guided:
        return
    first = max(guided)
    share = float(np.sqrt(diffusion.alphas_cumprod[diffusion.timestep_map.index(first)]))
    is_ddpm = sampling.sampler == "ddpm" or not (sampling.sampler or sampling.use_ddim)
    if is_ddpm or sampling.dynamic_threshold or share > _LEAST_SHARE:
        return
    logger.warning(
        f"--timestep_respacing: guidance begins at t = {first}, where x_t = {share:.0e} x_0 + noise: it moves x_0 by "
        f"the classifier's gradient times {1 / share:,.0f}, which may ruin the images; expected timesteps that begin "
        "later, as ddim10 has, or --dynamic_threshold 0.995"
    )


def warn_of_unused_amp(parsed: ParsedFlags, *half: bool) -> None:
    """Warn that --amp_dtype does nothing where no network is in half precision. :param half: of each network."""
    name = parsed.values.get("amp_dtype", "fp32")
    if name != "fp32" and not any(half):
        flags = " or ".join(f"--{flag} True" for flag in ("use_fp16", "classifier_use_fp16") if flag in parsed.defaults)
        logger.warning(f"--amp_dtype {name}: found with all networks in float32, expected {flags}: it does nothing")


def warn_of_unused_labels(parsed: ParsedFlags, class_cond: bool) -> None:
    """Warn that --labels does nothing for a network without classes."""
    rule = parsed.values.get("labels")
    if rule and not class_cond:
        logger.warning(f"--labels {rule}: not read, without --class_cond True the network has no classes")


def save_config(values: dict[str, Any]) -> None:
    """Write config.json, the flags of the checkpoints to come, from rank 0."""
    if collectives.get_rank() == 0:
        checkpoint.write_config(logger.get_dir(), values)
