"""Convert an npz file of images to PNG files with a labelled grid, and back, losslessly; or any folder of images.

    python evaluations/convert.py SAMPLES.npz FOLDER
    python evaluations/convert.py FOLDER SAMPLES.npz

The files are named ``LABEL_INDEX.png``, or ``INDEX.png`` without labels, so that training reads the labels and
the conversion back finds the order. The grid is ``FOLDER.png``, beside the folder. A folder of other names, or of JPEG
files, gives the images and labels that training reads from it.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from evaluations.image_sets import GREY
from evaluations.reference import labels_to_write, open_images, read_labels
from guided_diffusion.config.configs import ReadingConfig
from guided_diffusion.config.flags import Parser
from guided_diffusion.data.image_files import EXPECTED, ImageFiles, list_images
from guided_diffusion.data.image_labels import HELP, numbered
from guided_diffusion.data.image_oddities import warn_of_oddities
from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import write_atomically
from guided_diffusion.io.images import NO_IMAGE, Reading, has_transparent_pixels, open_image, read_image
from guided_diffusion.io.reading import decoding, exists

_LABEL_HEIGHT = 12  # pixels, of PIL's built-in font

log = logging.getLogger("convert")


def main() -> None:
    """Parse the command line, convert; ``InputError`` for anything wrong with the input."""
    parser = Parser("From npz to PNG files and a labelled grid, or back.", ReadingConfig)
    parser.add_argument("source", help="npz file of images, or a folder, zip or tar archive of images")
    parser.add_argument("target", help="folder to make, or npz file to write")
    parser.add_argument("--grid", type=int, default=64, help="images in the grid; 0 for none")
    parser.add_argument("--labels", default="auto", help=HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace the npz file or grid that is there already")
    parser.set_defaults(bit_depth=None, exif_transpose=False, alpha=None)  # lossy reading has to be asked for
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    source, target = Path(args.source), Path(args.target)
    if args.grid < 0:
        raise InputError(f"--grid: found {args.grid}, expected at least 0")
    if target.suffix == ".npz" and source.suffix != ".npz":
        folder_to_npz(source, target, args.labels, args.overwrite, args.bit_depth, args.exif_transpose, args.alpha)
    elif source.suffix == ".npz" and target.suffix != ".npz":
        npz_to_folder(source, target, args.grid, args.overwrite)
    else:
        raise InputError(f"{source} to {target}: expected a npz file and a folder, or a folder and a npz file")


def npz_to_folder(source: Path, folder: Path, grid: int = 64, overwrite: bool = False) -> None:
    """Write the images of ``source`` (``arr_0``, labels ``arr_1`` if any) as PNG files; streamed.

    Raises ``InputError`` if ``folder`` is not empty, the grid exists, or the file is bad.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder")
    picture = folder.with_name(f"{folder.name}.png")
    if grid:
        _check_free(picture, overwrite)
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
        with write_atomically(picture) as file:
            draw_grid(first, labels).save(file, format="PNG")
        log.info("grid: %s", picture.absolute())
    log.info("wrote %d images to %s", i + 1, folder.absolute())


def folder_to_npz(
    folder: Path,
    target: Path,
    rule: str = "auto",
    overwrite: bool = False,
    bit_depth: int | None = None,
    exif_transpose: bool = False,
    alpha: str | None = None,
) -> None:
    """Write the images of a folder, searched recursively, or archive: ``arr_0``, and ``arr_1`` if there are labels.

    The inverse of ``npz_to_folder`` where all files have its names; their order is then that of the numbers. Otherwise
    images and labels are those of training on the folder, and ``settings`` holds the classes' names.

    :param rule: where labels are read, see ``image_labels``.
    :param bit_depth, exif_transpose, alpha: see ``Reading``; without the first or the last, images of 16 bits or with
        transparency are refused.
    :raises InputError: a number is missing, images differ in size, or ``target`` exists.
    """
    _check_free(target, overwrite)
    reading = Reading(bit_depth or 16, exif_transpose, alpha or "keep")
    files = list_images(str(folder))
    if not files.names:
        raise InputError(f"{folder}: found no images, expected some of {EXPECTED}")
    if skipped := files.describe_skipped():
        log.warning("warning: %s", skipped)
    if files.random_access:
        warn_of_oddities(files, reading, lambda line: log.warning("warning: %s", line))
    arrays = {}
    if rule == "auto" and _sort_by_number(files):
        if found := numbered(files.names, labelled=True):
            arrays["arr_1"] = np.array([label for label, _ in found], dtype=np.int64)
    elif found := labels_to_write(files, rule):
        arrays["arr_1"] = np.array(found.number(files), dtype=np.int64)
        arrays["settings"] = np.array(json.dumps({"class_names": found.names}))
    images = None
    for i, (name, file) in enumerate(tqdm(files.stream(), total=len(files), desc="images", unit="image")):
        pixels = _read(f"{folder}: {name}", file, reading, refuse_deep=bit_depth is None, refuse_clear=alpha is None)
        if images is None:
            images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"{folder}: {name}: found {pixels.shape}, expected {images.shape[1:]} as in {files.names[0]}"
            )
        images[i] = pixels
    with write_atomically(target) as file:
        np.savez(file, arr_0=images, **arrays)
    log.info("wrote %d images to %s", len(files), target.absolute())


def _sort_by_number(files: ImageFiles) -> bool:
    """Sort the files of one folder by INDEX where all are called LABEL_INDEX or INDEX; return whether they are."""
    found = numbered(files.names, labelled=True) or numbered(files.names, labelled=False)
    indices = [index for _, index in found or ()]
    folders = {name.rpartition("/")[0] for name in files.names}
    if not found or len(folders) > 1 or len(set(indices)) < len(indices):
        return False
    missing = sorted(set(range(len(indices))) - set(indices))
    if missing:
        raise InputError(
            f"{files.place}: found {len(found)} images, expected them numbered from 0 without a gap, but {missing[0]} "
            "is missing; --labels filename takes any numbers"
        )
    names = [name for _, name in sorted(zip(indices, files.names, strict=True))]
    if names != files.names and not files.random_access:
        raise InputError(f"{files.place}: found a packed tar out of the order of its numbers, expected a folder")
    files.names = names
    return True


def draw_grid(images: list[np.ndarray], labels: np.ndarray | None, columns: int = 8) -> Image.Image:
    """Draw uint8 images [H, W, C] row by row, each with its label under it."""
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


def _read(name: str, file: BinaryIO, reading: Reading, refuse_deep: bool, refuse_clear: bool) -> np.ndarray:
    """Return uint8 [H, W, 1 or 3]; ``InputError`` for 16 bits of grey or transparent pixels where they are refused."""
    with decoding(name, NO_IMAGE, InputError):
        file = io.BytesIO(file.read())
        with open_image(file) as image:
            mode, clear = image.mode, refuse_clear and has_transparent_pixels(image)
    if refuse_deep and mode.startswith("I;16"):
        raise InputError(
            f"{name}: found 16 bits of grey, expected 8; --bit_depth 16 takes the upper 8 as training does, a smaller "
            "N those of values of N bits"
        )
    if clear:
        raise InputError(
            f"{name}: found transparent pixels, expected none; --alpha white or black shows that colour there, keep "
            "the hidden ones as training does"
        )
    pixels = np.asarray(read_image(name, file, "L" if mode in GREY else "RGB", reading))
    return pixels.reshape(*pixels.shape[:2], -1)


def _check_free(path: Path, overwrite: bool) -> None:
    if not overwrite and exists(path):
        raise InputError(f"{path}: is there already; --overwrite replaces it")


if __name__ == "__main__":
    from guided_diffusion.distributed.shutdown import run_main

    run_main(main)
