"""Defaults and builders with upstream's names and signatures; optional arguments of our own come last."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Iterable

from torch import nn

from guided_diffusion.config.builders import create_classifier, create_gaussian_diffusion, create_model, sr_create_model
from guided_diffusion.config.configs import ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from guided_diffusion.config.flags import from_values, str2bool
from guided_diffusion.diffusion.respace import SpacedDiffusion
from guided_diffusion.models.unet import EncoderUNetModel, SuperResModel, UNetModel

# Flags that upstream does not have; its own scripts hand every default to its builders.
_OURS = {"num_classes", "in_channels", "classifier_num_head_channels", "classifier_channel_mult"}


def _upstream_defaults(config: type, ours: set[str] = _OURS) -> dict:
    return {field.name: field.default for field in dataclasses.fields(config) if field.name not in ours}


def diffusion_defaults() -> dict:
    """Return the flags of the diffusion process with their defaults."""
    return _upstream_defaults(DiffusionConfig)


def classifier_defaults() -> dict:
    """Return the flags of the classifier with their defaults."""
    return _upstream_defaults(ClassifierConfig)


def model_and_diffusion_defaults() -> dict:
    """Return the flags of the diffusion model and process with their defaults."""
    return {**_upstream_defaults(ModelConfig), **diffusion_defaults()}


def classifier_and_diffusion_defaults() -> dict:
    """Return the flags of the classifier and the process it is trained on, with their defaults."""
    return {**classifier_defaults(), **diffusion_defaults()}


def sr_model_and_diffusion_defaults() -> dict:
    """Return the flags of the super-resolution model and process with their defaults."""
    return {**_upstream_defaults(SuperResConfig, _OURS | {"channel_mult"}), **diffusion_defaults()}


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: dict) -> None:
    """Add `--name value` for each entry, of the default's type (None: str); booleans need a value, as upstream's."""
    for name, default in default_dict.items():
        kind = str if default is None else str2bool if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name}", default=default, type=kind)


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict:
    """Return the named attributes of `args`."""
    return {key: getattr(args, key) for key in keys}


def _with_diffusion(name: str, config: type, flags: str) -> Callable[..., tuple[nn.Module, SpacedDiffusion]]:
    """Return a builder of a process and of what the function `name` builds; its arguments are `flags`, in their order.

    The config's other flags follow them as optional arguments.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in flags.split()]
    ours = [field for field in dataclasses.fields(config) if field.name not in flags.split()]
    defaults = {field.name: field.default for field in ours} | {"num_classes": None}  # NUM_CLASSES, read at each call
    parameters += [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
    signature = inspect.Signature(parameters)
    accepted = signature.parameters.keys() & inspect.signature(globals()[name]).parameters

    def build(*args, **kwargs) -> tuple[nn.Module, SpacedDiffusion]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        create = globals()[name]  # read at each call: users assign to script_util.create_model
        diffusion = from_values(DiffusionConfig, bound.arguments)
        return create(**{flag: bound.arguments[flag] for flag in accepted}), build_diffusion(diffusion)

    build.__name__ = build.__qualname__ = f"{name}_and_diffusion"
    build.__doc__ = f"Build what `{name}` builds, and its process, from the flags of the same names."
    build.__signature__ = signature
    return build


_PROCESS = (
    "diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps rescale_learned_sigmas"
)
create_model_and_diffusion = _with_diffusion(
    "create_model",
    ModelConfig,
    "image_size class_cond learn_sigma num_channels num_res_blocks channel_mult num_heads num_head_channels "
    f"num_heads_upsample attention_resolutions dropout {_PROCESS} use_checkpoint use_scale_shift_norm "
    "resblock_updown use_fp16 use_new_attention_order",
)
create_classifier_and_diffusion = _with_diffusion(
    "create_classifier",
    ClassifierConfig,
    "image_size classifier_use_fp16 classifier_width classifier_depth classifier_attention_resolutions "
    f"classifier_use_scale_shift_norm classifier_resblock_updown classifier_pool learn_sigma {_PROCESS}",
)
sr_create_model_and_diffusion = _with_diffusion(
    "sr_create_model",
    SuperResConfig,
    "large_size small_size class_cond learn_sigma num_channels num_res_blocks num_heads num_head_channels "
    f"num_heads_upsample attention_resolutions dropout {_PROCESS} use_checkpoint use_scale_shift_norm "
    "resblock_updown use_fp16",
)


def build_diffusion(config: DiffusionConfig) -> SpacedDiffusion:
    """Build the process of a config. InputError for an unknown respacing."""
    options = dataclasses.asdict(config)
    return create_gaussian_diffusion(steps=options.pop("diffusion_steps"), **options)


def build_model(config: ModelConfig, diffusion: DiffusionConfig) -> UNetModel:
    """Build the diffusion network of a config, newly initialised, in float32: use_fp16 is left to autocast."""
    return create_model(learn_sigma=diffusion.learn_sigma, **dataclasses.asdict(config) | {"use_fp16": False})


def build_classifier(config: ClassifierConfig) -> EncoderUNetModel:
    """Build the classifier of a config, newly initialised, in float32."""
    return create_classifier(**dataclasses.asdict(config) | {"classifier_use_fp16": False})


def build_super_res_model(config: SuperResConfig, diffusion: DiffusionConfig) -> SuperResModel:
    """Build the super-resolution network of a config, newly initialised, in float32."""
    return sr_create_model(learn_sigma=diffusion.learn_sigma, **dataclasses.asdict(config) | {"use_fp16": False})
