"""Defaults and builders with upstream's names and signatures; ours add optional arguments at the end."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

from .configs import NUM_CLASSES, ClassifierConfig, DiffusionConfig, ModelConfig, SuperResConfig
from .errors import InputValueError
from .flags import str2bool
from .gaussian_diffusion import LossType, ModelMeanType, ModelVarType, get_named_beta_schedule
from .respace import SpacedDiffusion, space_timesteps
from .unet import EncoderUNetModel, SuperResModel, UNetModel

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

Network = TypeVar("Network")

# Width of each level over the first one's. 64 and up are the published models'; 32 is the ED-DPM release's.
CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
    16: (1, 2, 2),
    8: (1, 2),
}
SR_CHANNEL_MULT = {**CHANNEL_MULT, 512: (1, 1, 2, 2, 4, 4)}

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


def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str | list[int] = "",
) -> SpacedDiffusion:
    """The process that the flags describe. ValueError (shown as one line) for an unknown respacing."""
    betas = get_named_beta_schedule(noise_schedule, steps)
    mse_type = LossType.RESCALED_MSE if rescale_learned_sigmas else LossType.MSE
    fixed_variance = ModelVarType.FIXED_SMALL if sigma_small else ModelVarType.FIXED_LARGE
    try:
        use_timesteps = space_timesteps(steps, timestep_respacing or [steps])
    except ValueError as error:
        raise InputValueError(f"--{error}") from error
    return SpacedDiffusion(
        use_timesteps=use_timesteps,
        betas=betas,
        model_mean_type=ModelMeanType.START_X if predict_xstart else ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if learn_sigma else fixed_variance,
        loss_type=LossType.RESCALED_KL if use_kl else mse_type,
        rescale_timesteps=rescale_timesteps,
    )


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    channel_mult: str = "",
    learn_sigma: bool = False,
    class_cond: bool = False,
    use_checkpoint: bool = False,
    attention_resolutions: str = "16",
    num_heads: int = 1,
    num_head_channels: int = -1,
    num_heads_upsample: int = -1,
    use_scale_shift_norm: bool = False,
    dropout: float = 0,
    resblock_updown: bool = False,
    use_fp16: bool = False,
    use_new_attention_order: bool = False,
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
) -> UNetModel:
    """The diffusion network. InputError (a ValueError) naming flags that do not fit together."""
    levels = _levels("image_size", image_size, "channel_mult", channel_mult, CHANNEL_MULT)
    return _build(
        UNetModel,
        "--num_channels, --channel_mult, --num_heads, --num_head_channels",
        image_size=image_size,
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=in_channels * (2 if learn_sigma else 1),
        num_res_blocks=num_res_blocks,
        attention_resolutions=_downsample_rates("attention_resolutions", image_size, attention_resolutions),
        dropout=dropout,
        channel_mult=levels,
        num_classes=num_classes if class_cond else None,
        use_checkpoint=use_checkpoint,
        use_fp16=use_fp16,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_new_attention_order=use_new_attention_order,
    )


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
    num_classes=NUM_CLASSES,
    in_channels=3,
) -> tuple[UNetModel, SpacedDiffusion]:
    """The diffusion network and process; arguments as the flags of the same names."""
    arguments = locals()
    diffusion = _make(DiffusionConfig, arguments)
    return build_model(_make(ModelConfig, arguments), diffusion), build_diffusion(diffusion)


def create_classifier(
    image_size: int,
    classifier_use_fp16: bool,
    classifier_width: int,
    classifier_depth: int,
    classifier_attention_resolutions: str,
    classifier_use_scale_shift_norm: bool,
    classifier_resblock_updown: bool,
    classifier_pool: str,
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
    classifier_num_head_channels: int = 64,
    classifier_channel_mult: str = "",
) -> EncoderUNetModel:
    """The noise-aware classifier. InputError (a ValueError) naming flags that do not fit together."""
    levels = _levels("image_size", image_size, "classifier_channel_mult", classifier_channel_mult, CHANNEL_MULT)
    return _build(
        EncoderUNetModel,
        "--classifier_width, --classifier_channel_mult, --classifier_num_head_channels",
        image_size=image_size,
        in_channels=in_channels,
        model_channels=classifier_width,
        out_channels=num_classes,
        num_res_blocks=classifier_depth,
        attention_resolutions=_downsample_rates(
            "classifier_attention_resolutions", image_size, classifier_attention_resolutions
        ),
        channel_mult=levels,
        use_fp16=classifier_use_fp16,
        num_head_channels=classifier_num_head_channels,
        use_scale_shift_norm=classifier_use_scale_shift_norm,
        resblock_updown=classifier_resblock_updown,
        pool=classifier_pool,
    )


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
    num_classes=NUM_CLASSES,
    in_channels=3,
    classifier_num_head_channels=64,
    classifier_channel_mult="",
) -> tuple[EncoderUNetModel, SpacedDiffusion]:
    """The classifier and the process whose noise it learns; arguments as the flags of the same names."""
    arguments = locals()
    return build_classifier(_make(ClassifierConfig, arguments)), build_diffusion(_make(DiffusionConfig, arguments))


def sr_create_model(
    large_size,
    small_size,
    num_channels,
    num_res_blocks,
    learn_sigma,
    class_cond,
    use_checkpoint,
    attention_resolutions,
    num_heads,
    num_head_channels,
    num_heads_upsample,
    use_scale_shift_norm,
    dropout,
    resblock_updown,
    use_fp16,
    num_classes=NUM_CLASSES,
    in_channels=3,
    channel_mult="",
) -> SuperResModel:
    """The super-resolution network. InputError (a ValueError) naming flags that do not fit together."""
    levels = _levels("large_size", large_size, "channel_mult", channel_mult, SR_CHANNEL_MULT)
    return _build(
        SuperResModel,
        "--num_channels, --channel_mult, --num_heads, --num_head_channels",
        image_size=large_size,
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=in_channels * (2 if learn_sigma else 1),
        num_res_blocks=num_res_blocks,
        attention_resolutions=_downsample_rates("attention_resolutions", large_size, attention_resolutions),
        dropout=dropout,
        channel_mult=levels,
        num_classes=num_classes if class_cond else None,
        use_checkpoint=use_checkpoint,
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        resblock_updown=resblock_updown,
        use_fp16=use_fp16,
    )


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
    num_classes=NUM_CLASSES,
    in_channels=3,
    channel_mult="",
) -> tuple[SuperResModel, SpacedDiffusion]:
    """The super-resolution network and process; arguments as the flags of the same names."""
    arguments = locals()
    diffusion = _make(DiffusionConfig, arguments)
    return build_super_res_model(_make(SuperResConfig, arguments), diffusion), build_diffusion(diffusion)


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


def _make(config: type[Network], arguments: dict) -> Network:
    names = (field.name for field in dataclasses.fields(config))
    return config(**{name: arguments[name] for name in names})


def _build(network: Callable[..., Network], flags: str, **arguments) -> Network:
    try:
        return network(**arguments)
    except ValueError as error:
        raise InputValueError(f"{flags}: {error}") from error


def _levels(
    size_flag: str, size: int, mult_flag: str, mult: str, table: dict[int, tuple[float, ...]]
) -> tuple[float, ...]:
    """Level widths: the flag's, else the table's for this image size."""
    if mult == "":
        if size not in table:
            known = ", ".join(map(str, sorted(table)))
            raise InputValueError(
                f"--{size_flag}: found {size}, expected one of {known}; other sizes need --{mult_flag}"
            )
        return table[size]
    try:
        levels = tuple(float(part) for part in mult.split(","))
    except ValueError:
        raise InputValueError(f'--{mult_flag}: found {mult!r}, expected numbers such as "1,2,4"') from None
    if not all(level > 0 for level in levels):
        raise InputValueError(f"--{mult_flag}: found {mult!r}, expected positive numbers")
    rate = 2 ** (len(levels) - 1)
    if size % rate:
        raise InputValueError(
            f"--{size_flag}: found {size}, expected a multiple of {rate} for the {len(levels)} levels of --{mult_flag}"
        )
    return tuple(int(level) if level == int(level) else level for level in levels)


def _downsample_rates(flag: str, size: int, resolutions: str) -> tuple[int, ...]:
    """Sides in pixels, "32,16,8", as downsampling rates of an image of `size` pixels."""
    try:
        return tuple(size // int(side) for side in resolutions.split(","))
    except (ValueError, ZeroDivisionError):
        raise InputValueError(f'--{flag}: found {resolutions!r}, expected sides such as "32,16,8"') from None
