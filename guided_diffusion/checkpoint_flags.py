"""The flags that a checkpoint's weights ask for, read from their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]

_STEM = "input_blocks.0.0.weight"  # [width, channels of the input, 3, 3]
_LABELS = "label_emb.weight"
_HEADS = ("out.2.c_proj", "out.3", "out.2")  # a classifier's last layer, by --classifier_pool


def class_tensors(shapes: Shapes) -> list[str]:
    """The tensors with a row for every class: of the embedding of labels, or of a classifier's last layer.

    None for an unconditional diffusion model.
    """
    if _is_diffusion_model(shapes):
        return [_LABELS] if _LABELS in shapes else []
    head = next((name for name in _HEADS if f"{name}.weight" in shapes), None)
    return [] if head is None else [f"{head}.weight", f"{head}.bias"]


def num_classes(shapes: Shapes) -> int | None:
    """The number of classes that weights are made for; None where they know no classes."""
    return next((shapes[name][0] for name in class_tensors(shapes)), None)


def advice(found: Shapes, expected: Shapes) -> str:
    """Clause for an error line: the flags with which a model would fit the weights; "" where nobody can tell."""
    if _is_diffusion_model(found) != _is_diffusion_model(expected):
        kinds = ["a diffusion model" if _is_diffusion_model(shapes) else "a classifier" for shapes in (found, expected)]
        known = _STEM in found and _STEM in expected  # else one is no network of this kind at all
        return f"; the file holds {kinds[0]}, expected {kinds[1]}" if known else ""
    flags = _flags_that_fit(found, expected)
    return f"; it fits with {' '.join(flags)}" if flags else ""


def _is_diffusion_model(shapes: Shapes) -> bool:
    return any(name.startswith("output_blocks.") for name in shapes)


def _flags_that_fit(found: Shapes, expected: Shapes) -> list[str]:
    """The flags by which two networks of one kind differ, each with the value for the weights found."""
    unet, flags = _is_diffusion_model(expected), []
    (width, channels), (our_width, our_channels) = ((*shapes.get(_STEM, (0, 0)),)[:2] for shapes in (found, expected))
    if width and our_width and width != our_width:
        return [f"--{'num_channels' if unet else 'classifier_width'} {width}"]  # everything else follows from it
    if channels != our_channels and {channels, our_channels} == {1, 3}:
        flags.append(f"--in_channels {channels}")
    if unet and (_LABELS in found) != (_LABELS in expected):
        flags.append(f"--class_cond {_LABELS in found}")
    classes = num_classes(found)
    if classes and classes != num_classes(expected):
        flags.append(f"--num_classes {classes}")
    learned, ours = (shapes.get("out.2.weight", (0,))[0] in (2, 6) for shapes in (found, expected))
    if unet and learned != ours:
        flags.append(f"--learn_sigma {learned}")
    return flags
