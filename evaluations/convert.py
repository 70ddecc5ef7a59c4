"""From an npz file of images to PNG files with a labelled grid, and back, losslessly.

    python evaluations/convert.py SAMPLES.npz FOLDER
    python evaluations/convert.py FOLDER SAMPLES.npz

The files are named ``LABEL_INDEX.png``, or ``INDEX.png`` without labels, so that training reads the labels and
the way back finds the order. The grid is ``FOLDER.png``, beside the folder.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for runs without installation

from evaluations.metrics.npz import open_images, read_labels  # noqa: E402
from guided_diffusion.errors import InputError  # noqa: E402
from guided_diffusion.files import decoding, open_regular, write_atomically  # noqa: E402
from guided_diffusion.safe_images import NO_IMAGE, open_image  # noqa: E402

_LABEL_HEIGHT = 12  # pixels, of PIL's built-in font

log = logging.getLogger("convert")


def main() -> None:
    """Parse the command line, convert; ``InputError`` for anything wrong with the input."""
    parser = argparse.ArgumentParser(description="From npz to PNG files and a labelled grid, or back.")
    parser.add_argument("source", help="npz file of images, or folder that this program wrote")
    parser.add_argument("target", help="folder to make, or npz file to write")
    parser.add_argument("--grid", type=int, default=64, help="images in the grid; 0 for none")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    source, target = Path(args.source), Path(args.target)
    if args.grid < 0:
        raise InputError(f"--grid: found {args.grid}, expected at least 0")
    if target.suffix == ".npz" and os.path.isdir(source):
        folder_to_npz(source, target)
    elif source.suffix == ".npz":
        npz_to_folder(source, target, args.grid)
    else:
        raise InputError(f"{source} to {target}: expected a npz file and a folder, or a folder and a npz file")


def npz_to_folder(source: Path, folder: Path, grid: int = 64) -> None:
    """Write the images of ``source`` (``arr_0``, labels ``arr_1`` if any) as PNG files; streamed.

    Raises ``InputError`` if ``folder`` holds something already or the file is bad.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder")
    with open_images(source) as reader:
        labels = read_labels(source, reader.shape[0])
        if labels is not None and labels.min() < 0:
            raise InputError(f"{source}: found the label {labels.min()} in arr_1, expected 0 or more")
        digits = len(str(reader.shape[0] - 1))
        first: list[np.ndarray] = []
        for i in tqdm(range(reader.shape[0]), desc="images", unit="image"):
            pixels = reader.read_batch(1)[0]
            if i < grid:
                first.append(pixels)
            prefix = "" if labels is None else f"{labels[i]}_"
            with write_atomically(folder / f"{prefix}{i:0{digits}d}.png") as file:
                _picture(pixels).save(file, format="PNG")
    if first:
        path = folder.with_name(f"{folder.name}.png")
        with write_atomically(path) as file:
            draw_grid(first, labels).save(file, format="PNG")
        log.info("grid: %s", path.absolute())
    log.info("wrote %d images to %s", i + 1, folder.absolute())


def folder_to_npz(folder: Path, target: Path) -> None:
    """The inverse of ``npz_to_folder``: ``arr_0`` in the order of the numbers, ``arr_1`` if there are labels.

    Raises ``InputError`` if a name is not of its kind, a number is missing or images differ in size.
    """
    found = {}
    for path in folder.glob("*.png"):
        label, _, index = path.stem.rpartition("_")
        if not index.isdecimal() or not (label.isdecimal() or not label) or len(label) > 18:  # 63 bits
            raise InputError(f"{path}: expected a name such as 3_0012.png or 0012.png")
        found[int(index)] = (label, path)
    if sorted(found) != list(range(len(found))) or not found:
        raise InputError(f"{folder}: found {len(found)} png files, expected them numbered from 0 without a gap")
    labels = [found[i][0] for i in range(len(found))]
    if len({bool(label) for label in labels}) > 1:
        raise InputError(f"{folder}: found names with and without labels, expected one kind")
    images = None
    for i in tqdm(range(len(found)), desc="images", unit="image"):
        pixels = _read(found[i][1])
        if images is None:
            images = np.empty((len(found), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise InputError(f"{found[i][1]}: found {pixels.shape}, expected {images.shape[1:]} as in the first")
        images[i] = pixels
    arrays = [images] if not labels[0] else [images, np.array(labels, dtype=np.int64)]
    with write_atomically(target) as file:
        np.savez(file, *arrays)
    log.info("wrote %d images to %s", len(found), target.absolute())


def draw_grid(images: list[np.ndarray], labels: np.ndarray | None, columns: int = 8) -> Image.Image:
    """Uint8 images [H, W, C] row by row, each with its label under it."""
    height, width, _ = images[0].shape
    step = height + (_LABEL_HEIGHT if labels is not None else 0)
    columns = min(columns, len(images))
    grid = Image.new("RGB", (columns * width, -(-len(images) // columns) * step))
    draw = ImageDraw.Draw(grid)
    for i, pixels in enumerate(images):
        left, top = i % columns * width, i // columns * step
        grid.paste(_picture(pixels).convert("RGB"), (left, top))
        if labels is not None:
            draw.text((left + 1, top + height), str(labels[i]), fill="white")
    return grid


def _picture(pixels_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC))


def _read(path: Path) -> np.ndarray:
    with decoding(path, NO_IMAGE, InputError), open_regular(path) as file, open_image(file) as image:
        if image.mode not in ("L", "RGB"):  # any other would not come back as it was
            raise ValueError(f"found an image of mode {image.mode}, expected 8 bits of grey or RGB")
        pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


if __name__ == "__main__":
    from guided_diffusion.dist_util import run_main

    run_main(main)
