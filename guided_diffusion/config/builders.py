"""Builders of the three networks and of the process from plain arguments, beginning with upstream's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from guided_diffusion.config.configs import NUM_CLASSES
from guided_diffusion.diffusion.enums import LossType, ModelMeanType, ModelVarType
from guided_diffusion.diffusion.respace import SpacedDiffusion, space_timesteps
from guided_diffusion.diffusion.schedules import get_named_beta_schedule
from guided_diffusion.errors import InputValueError
from guided_diffusion.models.layers import NORM_GROUPS
from guided_diffusion.models.unet import EncoderUNetModel, SuperResModel, UNetModel
from guided_diffusion.system.malloc import machine_memory

Built = TypeVar("Built")

# Width of each level relative to the first. Sizes from 64 are upstream's; 32 is the ED-DPM release's.
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
_WIDEST = 1e6  # times --num_channels
_MOST_BLOCKS = 500  # residual blocks of the contracting half; the published networks have up to 28


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
    """Build the process that the flags describe. InputError (a ValueError) for an unknown respacing."""
    betas = get_named_beta_schedule(noise_schedule, steps)
    mse_type = LossType.RESCALED_MSE if rescale_learned_sigmas else LossType.MSE
    fixed_variance = ModelVarType.FIXED_SMALL if sigma_small else ModelVarType.FIXED_LARGE
    try:
        use_timesteps = space_timesteps(steps, timestep_respacing or [steps])
    except ValueError as error:
        raise InputValueError(f"--{error}") from error
    if not use_timesteps:
        raise InputValueError(f"--timestep_respacing: found {timestep_respacing!r}, expected at least one timestep")
    return _build(
        SpacedDiffusion,
        "--diffusion_steps, --noise_schedule",
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
    num_classes: int | None = None,
    in_channels: int = 3,
) -> UNetModel:
    """Build the diffusion network. InputError (a ValueError) naming flags that do not fit together."""
    return _unet(UNetModel, "image_size", CHANNEL_MULT, locals())


def create_classifier(
    image_size: int,
    classifier_use_fp16: bool,
    classifier_width: int,
    classifier_depth: int,
    classifier_attention_resolutions: str,
    classifier_use_scale_shift_norm: bool,
    classifier_resblock_updown: bool,
    classifier_pool: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    classifier_num_head_channels: int = 64,
    classifier_channel_mult: str = "",
) -> EncoderUNetModel:
    """Build the noise-aware classifier. InputError (a ValueError) naming flags that do not fit together."""
    levels = _levels("image_size", image_size, "classifier_channel_mult", classifier_channel_mult, CHANNEL_MULT)
    return _network(
        EncoderUNetModel,
        ("classifier_width", "classifier_channel_mult", "", "classifier_num_head_channels"),
        image_size=image_size,
        in_channels=in_channels,
        model_channels=classifier_width,
        out_channels=NUM_CLASSES if num_classes is None else num_classes,
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
    num_classes=None,
    in_channels=3,
    channel_mult="",
) -> SuperResModel:
    """Build the super-resolution network. InputError (a ValueError) naming flags that do not fit together."""
    return _unet(SuperResModel, "large_size", SR_CHANNEL_MULT, locals())


def _unet(
    constructor: Callable[..., Built], size_flag: str, table: dict[int, tuple[float, ...]], flags: dict[str, Any]
) -> Built:
    """Build a UNet from the arguments of `create_model` or `sr_create_model`. size_flag: the flag of the image side."""
    size, channels, channel_mult = flags[size_flag], flags["in_channels"], flags["channel_mult"]
    num_classes = NUM_CLASSES if flags["num_classes"] is None else flags["num_classes"]
    renamed = ("num_channels", "learn_sigma", "class_cond", "large_size", "small_size")
    arguments = {name: value for name, value in flags.items() if name not in renamed}
    arguments |= {
        "image_size": size,
        "model_channels": flags["num_channels"],
        "out_channels": channels * (2 if flags["learn_sigma"] else 1),
        "channel_mult": _levels(size_flag, size, "channel_mult", channel_mult, table),
        "attention_resolutions": _downsample_rates("attention_resolutions", size, flags["attention_resolutions"]),
        "num_classes": num_classes if flags["class_cond"] else None,
    }
    return _network(constructor, ("num_channels", "channel_mult", "num_heads", "num_head_channels"), **arguments)


def _network(constructor: Callable[..., Built], names: Sequence[str], **arguments) -> Built:
    """Build a network. InputError if widths do not divide, or for too many blocks or more memory than the machine has.

    The memory is a low estimate, of the parameters and one feature map.

    :param names: of the flags for width, levels, heads ("" for none) and channels per head.
    """
    flags = ", ".join(f"--{name}" for name in names if name)
    channels, side, depth = arguments["model_channels"], arguments["image_size"], arguments["num_res_blocks"]
    widths = [int(mult * channels) for mult in arguments["channel_mult"]]
    if not all(widths) or depth * len(widths) > _MOST_BLOCKS:
        raise InputValueError(
            f"{flags}: found {depth} residual blocks on levels of {', '.join(map(str, widths))} channels, "
            f"expected at least 1 channel and at most {_MOST_BLOCKS} blocks in all"
        )
    _check_widths(names, widths, arguments)
    parameters = 20 * channels**2 + 9 * depth * sum(width**2 for width in widths)
    parameters += channels * (arguments.get("num_classes") or arguments["out_channels"])
    if arguments.get("pool") == "attention":
        parameters += widths[-1] * (side >> len(widths) - 1) ** 2
    needed, there = 4 * parameters + 2 * channels * side**2, machine_memory()
    if needed > there:
        raise InputValueError(
            f"{flags}, number of classes: found a network that takes at least {needed / 2**30:.3g} GiB for an image, "
            f"expected at most the {there / 2**30:.3g} GiB of this machine"
        )
    return _build(constructor, flags, **arguments)


def _check_widths(names: Sequence[str], widths: Sequence[int], arguments: Mapping[str, Any]) -> None:
    """Raise InputError where a level's width has no 32 equal groups, or with attention no equal heads."""
    width, levels, heads, head_channels = names
    if any(channels % NORM_GROUPS for channels in widths):
        raise InputValueError(
            f"--{width} {arguments['model_channels']}: found levels of {', '.join(map(str, widths))} channels (by "
            f"--{levels}), expected multiples of {NORM_GROUPS}, the groups of the normalisation"
        )
    attended = {widths[i] for i in range(len(widths)) if 2**i in arguments["attention_resolutions"]} | {widths[-1]}
    largest, found = math.gcd(*attended), arguments["num_head_channels"]
    flag = f"--{head_channels}"
    if found == -1:
        if not heads:
            return
        flag, found = f"--{heads}", arguments["num_heads"]
    if found < 1 or largest % found:
        best = max((n for n in range(1, min(found, largest) + 1) if largest % n == 0), default=largest)
        raise InputValueError(
            f"{flag}: found {found}, expected a divisor of {' and '.join(map(str, sorted(attended)))}, the channels of "
            f"the levels with attention (--{width} {arguments['model_channels']}), such as {best}"
        )


def _build(constructor: Callable[..., Built], flags: str, **arguments) -> Built:
    try:
        return constructor(**arguments)
    except ValueError as error:
        raise InputValueError(f"{flags}: {error}") from error


def _levels(
    size_flag: str, size: int, mult_flag: str, mult: str, table: dict[int, tuple[float, ...]]
) -> tuple[float, ...]:
    """Return the levels' relative widths: the flag's, else the table's for this image size."""
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
    if not all(0 < level <= _WIDEST for level in levels):
        raise InputValueError(f"--{mult_flag}: found {mult!r}, expected positive numbers up to {_WIDEST:g}")
    rate = 2 ** min(len(levels) - 1, 63)  # beyond that, more than any size
    if size % rate:
        raise InputValueError(
            f"--{size_flag}: found {size}, expected a multiple of {rate} for the {len(levels)} levels of --{mult_flag}"
        )
    return tuple(int(level) if level == int(level) else level for level in levels)


def _downsample_rates(flag: str, size: int, resolutions: str) -> tuple[int, ...]:
    """Convert image sides in pixels, "32,16,8", to downsampling rates of an image of `size` pixels."""
    try:
        return tuple(size // int(side) for side in resolutions.split(","))
    except (ValueError, ZeroDivisionError):
        raise InputValueError(f'--{flag}: found {resolutions!r}, expected sides such as "32,16,8"') from None
