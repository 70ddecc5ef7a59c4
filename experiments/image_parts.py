"""A part of the data: a folder of PNG files and, beside it, an npz file of the same images with their labels."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from guided_diffusion.io.atomic import write_atomically


def write_part(path: Path, images: np.ndarray, labels: np.ndarray, names: Iterable[str]) -> None:
    """Write `<folder>/<name>.png` for each image, then `<folder>.npz` (arr_0: images, arr_1: labels), which is `path`.

    Both appear under their names only when they are whole. images: uint8 [N, H, W, 1 or 3]; labels: int64 [N].
    """
    folder, unfinished = path.with_suffix(""), path.with_suffix(".unfinished")
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(unfinished / f"{name}.png")
    unfinished.rename(folder)
    with write_atomically(path) as file:
        np.savez(file, arr_0=images, arr_1=labels)
