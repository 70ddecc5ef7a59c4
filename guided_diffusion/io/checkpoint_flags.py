"""The flags that a checkpoint was made with, as far as the names and shapes of its weights tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Shapes = Mapping[str, Sequence[int]]

CLASSIFIER, DIFFUSION_MODEL, SUPER_RES = "classifier", "diffusion model", "super-resolution model"
_STEM = "input_blocks.0.0.weight"  # [width, channels of the input, 3, 3]
_LABELS = "label_emb.weight"
# Flags that names and shapes do not tell, or not without the size of the images.
_UNTOLD = "--attention_resolutions, --channel_mult and --image_size with those of its training"
_CLASSIFIERS_UNTOLD = (
    "--classifier_attention_resolutions, --classifier_channel_mult, --classifier_depth, --classifier_pool, "
    "--classifier_resblock_updown and --image_size with those of its training"
)
_PLAIN_UPSAMPLING = re.compile(r"output_blocks\.\d+\.[12]\.conv\.weight")
_RESBLOCK_UPSAMPLING = re.compile(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight")
_HEADS = ("out.2.c_proj", "out.3", "out.2")  # a classifier's last layer, by --classifier_pool


def class_tensors(shapes: Shapes) -> list[str]:
    """Return the names of the tensors with a row for every class: the label embedding, or a classifier's last layer.

    An unconditional diffusion model has none.
    """
    if _is_diffusion_model(shapes):
        return [_LABELS] if _LABELS in shapes else []
    head = next((name for name in _HEADS if f"{name}.weight" in shapes), None)
    return [] if head is None else [f"{head}.weight", f"{head}.bias"]


def num_classes(shapes: Shapes) -> int | None:
    """Return the number of classes of a network; None for an unconditional one."""
    return next((_size(shapes, name, 0) for name in class_tensors(shapes)), None)


def advice(found: Shapes, expected: Shapes) -> str:
    """Return a clause for an error line: the flags with which a model would fit the weights, or those that may differ.

    Both are networks of one kind; "" where one of the two is no network of guided diffusion.
    """
    if _STEM not in found or _STEM not in expected:
        return ""
    ours = _flags_of(expected)
    flags = [f"--{name} {value}" for name, value in _flags_of(found).items() if value and value != ours.get(name)]
    if flags:
        return f"; the file was made with {' '.join(flags)}"
    return f"; compare {_UNTOLD if _is_diffusion_model(found) else _CLASSIFIERS_UNTOLD}"


def kind(shapes: Shapes) -> str | None:
    """Return the kind of network that weights belong to; None where it is no network of guided diffusion."""
    if _STEM not in shapes:
        return None
    if not _is_diffusion_model(shapes):
        return CLASSIFIER
    return SUPER_RES if _size(shapes, _STEM, 1) in (2, 6) else DIFFUSION_MODEL


def kind_by_config(saved: Mapping[str, Any]) -> str | None:
    """Return the kind of network that a checkpoint's config.json belongs to; None where it does not tell."""
    if ("classifier_width" in saved) == ("num_channels" in saved):
        return None
    if "classifier_width" in saved:
        return CLASSIFIER
    return SUPER_RES if "large_size" in saved else DIFFUSION_MODEL


def _is_diffusion_model(shapes: Shapes) -> bool:
    return any(name.startswith("output_blocks.") for name in shapes)


def _size(shapes: Shapes, name: str, axis: int) -> int:
    """Return a tensor's size along an axis, 0 where there is no such tensor or axis: files may hold anything."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else 0


def _flags_of(shapes: Shapes) -> dict[str, str]:
    """Return the flags that names and shapes tell, as text; "" where they do not tell."""
    unet = _is_diffusion_model(shapes)
    channels = {1: 1, 2: 1, 3: 3, 6: 3}.get(_size(shapes, _STEM, 1), 0)  # super-resolution takes two images
    width = _size(shapes, "time_embed.0.weight", 1)
    norm = _size(shapes, "middle_block.0.out_layers.0.weight", 0)
    shift = str(_size(shapes, "middle_block.0.emb_layers.1.weight", 0) == 2 * norm) if norm else ""
    classes = str(num_classes(shapes) or "")
    if not unet:
        return {
            "classifier_width": str(width or ""),
            "in_channels": str(channels or ""),
            "classifier_use_scale_shift_norm": shift,
            "num_classes": classes,
        }
    # In the expanding half the last block of every level but the first resamples.
    blocks = {name.split(".")[1] for name in shapes if name.startswith("output_blocks.")}
    plain = {name for name in shapes if _PLAIN_UPSAMPLING.fullmatch(name)}
    resblocks = {name for name in shapes if _RESBLOCK_UPSAMPLING.fullmatch(name)}
    levels = 1 + len(plain or resblocks)
    return {
        "num_channels": str(width or ""),
        "num_res_blocks": str(len(blocks) // levels - 1),
        "in_channels": str(channels or ""),
        "use_scale_shift_norm": shift,
        "resblock_updown": str(not plain) if levels > 1 else "",
        "class_cond": str(_LABELS in shapes),
        "num_classes": classes,
        "learn_sigma": str(_size(shapes, "out.2.weight", 0) in (2, 6)),
    }
