"""Samples of several methods side by side (Fig. 5): a row a method, a column a starting noise and class."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.figures import style
from experiments.figures.inputs import (
    Labelled,
    add_class_names,
    class_name,
    indices,
    labelled,
    read_class_names,
    read_samples,
)
from guided_diffusion.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The figure's own options."""
    parser.add_argument("files", nargs="+", type=labelled, metavar="LABEL=SAMPLES",
                        help="npz of a sampling script, a run's folder, a folder or archive of images")  # fmt: skip
    parser.add_argument("--samples", type=indices, metavar="I,J,...", help="which are shown (the first 10)")
    add_class_names(parser)


def draw(args: argparse.Namespace) -> list[dict]:
    """Write the figure and return what identifies its images, a row each."""
    names = read_class_names(args.class_names, args.files)
    images, labels, chosen = _read(args.files, args.samples)
    titles = ["" if labels is None else class_name(names, int(labels[i])) for i in chosen]

    height, width = images[args.files[0].label].shape[1:3]
    cell = style.CELL
    size = 1.4 + len(chosen) * cell, 0.6 + len(images) * (cell * height / width + 0.04)
    with style.new_figure(args.out, *size) as figure:
        style.picture_grid(
            figure.subplots(), [("", [[_shown(stack[i]) for i in chosen] for stack in images.values()])], cell=cell,
            rows=[style.plain(label, 20) for label in images],
            columns=[style.plain(title, 11) or str(i) for title, i in zip(titles, chosen, strict=True)],
        )  # fmt: skip
    return [
        {"label": label, "sample": i, "class": None if labels is None else int(labels[i]), "class_name": title}
        | identity(stack[i])
        for label, stack in images.items()
        for i, title in zip(chosen, titles, strict=True)
    ]


def identity(image_HWC: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation of a uint8 image, in [0, 255], and the SHA-256 of its bytes in C order."""
    digest = hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()
    return {"mean": float(image_HWC.mean()), "std": float(image_HWC.std()), "sha256": digest}


def _read(
    files: Sequence[Labelled], samples: list[int] | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None, list[int]]:
    """Images by label of their file, the classes that they share, and the indices of the samples to show."""
    found = {file.label: read_samples(file.path) for file in files}
    images = {label: stack for label, (stack, _) in found.items()}
    chosen = samples or list(range(min(10, *map(len, images.values()))))
    first, labels = found[files[0].label]
    for file in files:
        other, other_labels = found[file.label]
        both = f"{files[0].path} and {file.path}"
        if max(chosen) >= len(other):
            raise InputError(f"--samples: found {max(chosen)}, expected less than {len(other)}, as {file.path} has")
        if other.shape[1:] != first.shape[1:]:
            shapes = f"{list(first.shape[1:])} and {list(other.shape[1:])}"
            raise InputError(f"{both}: found images of {shapes}, expected the same shape")
        a, b = (None if found is None else found[chosen] for found in (labels, other_labels))
        if not np.array_equal(a, b):  # neither file having classes is fine
            raise InputError(f"{both}: found different labels (arr_1) of the samples shown, expected the same")
    return images, labels, chosen


def _shown(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC[..., 0] / 255 if image_HWC.shape[2] == 1 else image_HWC / 255
