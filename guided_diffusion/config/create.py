"""Defaults and builders with upstream's names and signatures; ours add optional arguments at the end."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable

from guided_diffusion.config.builders import (
    create_classifier,
    create_gaussian_diffusion,
    create_model,
    sr_create_model,
)
from guided_diffusion.config.configs import (
    NUM_CLASSES,
    ClassifierConfig,
    DiffusionConfig,
    ModelConfig,
    SuperResConfig,
)
from guided_diffusion.config.flags import from_values, str2bool
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.models.unet import EncoderUNetModel, SuperResModel, UNetModel

__all__ = [
    "NUM_CLASSES",
    "add_dict_to_argparser",
    "args_to_dict",
    "build_classifier",
    "build_diffusion",
    "build_model",
    "build_super_res_model",
    "classifier_and_diffusion_defaults",
    "classifier_defaults",
    "create_classifier",
    "create_classifier_and_diffusion",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "diffusion_defaults",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]

# Flags that upstream does not have; its own scripts hand every default to its builders.
_OURS = {"num_classes", "in_channels", "classifier_num_head_channels", "classifier_channel_mult"}


def _upstream_defaults(config: type, ours: set[str] = _OURS) -> dict:
    return {field.name: field.default for field in dataclasses.fields(config) if field.name not in ours}


def diffusion_defaults() -> dict:
    """Flags of the diffusion process with their defaults."""
    return _upstream_defaults(DiffusionConfig)


def classifier_defaults() -> dict:
    """Flags of the classifier with their defaults."""
    return _upstream_defaults(ClassifierConfig)


def model_and_diffusion_defaults() -> dict:
    """Flags of the diffusion model and process with their defaults."""
    return {**_upstream_defaults(ModelConfig), **diffusion_defaults()}


def classifier_and_diffusion_defaults() -> dict:
    """Flags of the classifier and the process it is trained on, with their defaults."""
    return {**classifier_defaults(), **diffusion_defaults()}


def sr_model_and_diffusion_defaults() -> dict:
    """Flags of the super-resolution model and process with their defaults."""
    return {**_upstream_defaults(SuperResConfig, _OURS | {"channel_mult"}), **diffusion_defaults()}


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: dict) -> None:
    """One `--name value` per entry, of the default's type (None: str); booleans need a value, as upstream's."""
    for name, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name}", default=default, type=kind)


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict:
    """The named attributes of `args`."""
    return {key: getattr(args, key) for key in keys}


def create_model_and_diffusion(
    image_size,
    class_cond,
    learn_sigma,
    num_channels,
    num_res_blocks,
    channel_mult,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    resblock_updown,
    use_fp16,
    use_new_attention_order,
    num_classes=None,
    in_channels=3,
) -> tuple[UNetModel, SpacedDiffusion]:
    """The diffusion network and process; arguments as the flags of the same names."""
    arguments = locals() | {"num_classes": NUM_CLASSES if num_classes is None else num_classes}
    diffusion = from_values(DiffusionConfig, arguments)
    return build_model(from_values(ModelConfig, arguments), diffusion), build_diffusion(diffusion)


def create_classifier_and_diffusion(
    image_size,
    classifier_use_fp16,
    classifier_width,
    classifier_depth,
    classifier_attention_resolutions,
    classifier_use_scale_shift_norm,
    classifier_resblock_updown,
    classifier_pool,
    learn_sigma,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    num_classes=None,
    in_channels=3,
    classifier_num_head_channels=64,
    classifier_channel_mult="",
) -> tuple[EncoderUNetModel, SpacedDiffusion]:
    """The classifier and the process whose noise it learns; arguments as the flags of the same names."""
    arguments = locals() | {"num_classes": NUM_CLASSES if num_classes is None else num_classes}
    classifier = build_classifier(from_values(ClassifierConfig, arguments))
    return classifier, build_diffusion(from_values(DiffusionConfig, arguments))


def sr_create_model_and_diffusion(
    large_size,
    small_size,
    class_cond,
    learn_sigma,
    num_channels,
    num_res_blocks,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    attention_resolutions,
    dropout,
    diffusion_steps,
    noise_schedule,
    timestep_respacing,
    use_kl,
    predict_xstart,
    rescale_timesteps,
    rescale_learned_sigmas,
    use_checkpoint,
    use_scale_shift_norm,
    resblock_updown,
    use_fp16,
    num_classes=None,
    in_channels=3,
    channel_mult="",
) -> tuple[SuperResModel, SpacedDiffusion]:
    """The super-resolution network and process; arguments as the flags of the same names."""
    arguments = locals() | {"num_classes": NUM_CLASSES if num_classes is None else num_classes}
    diffusion = from_values(DiffusionConfig, arguments)
    return build_super_res_model(from_values(SuperResConfig, arguments), diffusion), build_diffusion(diffusion)


def build_diffusion(config: DiffusionConfig) -> SpacedDiffusion:
    """The process of a config. InputError for an unknown respacing."""
    options = dataclasses.asdict(config)
    return create_gaussian_diffusion(steps=options.pop("diffusion_steps"), **options)


def build_model(config: ModelConfig, diffusion: DiffusionConfig) -> UNetModel:
    """The diffusion network of a config, freshly initialised."""
    return create_model(learn_sigma=diffusion.learn_sigma, **dataclasses.asdict(config))


def build_classifier(config: ClassifierConfig) -> EncoderUNetModel:
    """The classifier of a config, freshly initialised."""
    return create_classifier(**dataclasses.asdict(config))


def build_super_res_model(config: SuperResConfig, diffusion: DiffusionConfig) -> SuperResModel:
    """The super-resolution network of a config, freshly initialised."""
    return sr_create_model(learn_sigma=diffusion.learn_sigma, **dataclasses.asdict(config))
