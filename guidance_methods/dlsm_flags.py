"""Flags of denoising likelihood score matching, and the diffusion model that they name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from guided_diffusion.config.configs import (
    ClassifierConfig,
    ClassifierTrainConfig,
    DiffusionConfig,
    ModelConfig,
    RunConfig,
)
from guided_diffusion.config.create import build_diffusion, build_model
from guided_diffusion.config.flags import ParsedFlags, flag
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError
from guided_diffusion.io.reading import hash_file
from guided_diffusion.sampling import setup

from .dlsm import DenoisingLikelihood

_SHARED = ("image_size", "in_channels", "noise_schedule", "diffusion_steps")


@dataclass(frozen=True)
class DlsmConfig:
    """Denoising likelihood score matching."""

    dlsm_weight: float = flag(
        0.0,
        "weight of the loss that trains the classifier's gradient: the mean square error, over pixels and channels, of "
        "the noise that it guides; half their number is the paper's weight",
        minimum=0.0,
    )
    model_path: str = flag(
        "",
        "unconditional diffusion model to guide, or its training's folder: for --dlsm_weight and the values dlsm_* and "
        "ideal_scale of the validation log; without config.json beside it, it needs the flags of its architecture",
    )


def read_denoising(
    parsed: ParsedFlags, classifier: ClassifierConfig, diffusion: DiffusionConfig
) -> tuple[DenoisingLikelihood | None, dict[str, Any]]:
    """Return the loss that the flags ask for, or None, and what a run's identity contains of it.

    :param classifier, diffusion: what is trained, and on which noise levels.
    :raises InputError: flags that do not go together, a diffusion model that has classes or does not fit.
    """
    config, train = parsed.make(DlsmConfig), parsed.make(ClassifierTrainConfig)
    _check_flags(parsed, config, train)
    if not config.model_path:
        return None, {"dlsm_weight": 0.0}
    parsed = setup.choose_files(parsed, "model_path")
    path = parsed.values["model_path"]
    model, process = setup.model_configs(parsed, path, ModelConfig)
    if model.class_cond:
        raise InputError(f"--model_path {path}: found a model with classes, expected an unconditional one")
    ours, theirs = asdict(classifier) | asdict(diffusion), asdict(model) | asdict(process)
    for name in _SHARED:
        if ours[name] != theirs[name]:
            raise InputError(
                f"--{name}: found {ours[name]} for the classifier, but {path} has {theirs[name]}; expected the same"
            )
    network = setup.load_frozen(partial(build_model, model, process), path, model.use_fp16, parsed.make(RunConfig))
    identity: dict[str, Any] = {"dlsm_weight": config.dlsm_weight}
    if config.dlsm_weight:  # without, it changes no weights
        identity["model_path"] = f"SHA-256 {collectives.from_rank_0(lambda: hash_file(path))[:12]}"
    return DenoisingLikelihood(network, build_diffusion(process), config.dlsm_weight), identity


def _check_flags(parsed: ParsedFlags, config: DlsmConfig, train: ClassifierTrainConfig) -> None:
    given = f"--dlsm_weight {config.dlsm_weight:g}" if config.dlsm_weight else f"--model_path {config.model_path}"
    if not config.model_path:
        if config.dlsm_weight:
            raise InputError(f"{given}: found without --model_path, expected an unconditional diffusion model")
        shared = {field.name for config in (ClassifierConfig, ClassifierTrainConfig) for field in fields(config)}
        lone = [field.name for field in fields(ModelConfig) if field.name in parsed.values.keys() - shared]
        if lone:
            raise InputError(f"--{lone[0]}: found without --model_path, expected both: it is a diffusion model's")
        return
    if not train.noised:
        raise InputError(f"{given}: found with --noised False, expected --noised True: it is about denoising")
    if config.dlsm_weight and train.compile:
        raise InputError(f"{given}: found with --compile, expected one of them: PyTorch compiles no second derivative")
    if not config.dlsm_weight and not train.val_data_dir:
        raise InputError(f"{given}: found without --dlsm_weight and --val_data_dir, expected one of them")
