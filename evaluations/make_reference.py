"""Make a reference file for the evaluator out of a folder of images.

    python evaluations/make_reference.py FOLDER OUT.npz --image_size 256 [--num_images 10000]

The statistics are those of all images; ``--num_images`` of them, drawn with ``--seed``, are kept for precision and
recall. The file holds the arrays of the published ones: ``arr_0`` images, ``arr_1`` labels, ``mu``,
``sigma``, ``mu_s``, ``sigma_s``; and ``settings``, a JSON text. With ``--features`` there are no statistics,
which would be taken for Inception's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.evaluator import add_network_flags, create_extractor, reading_of
from evaluations.features.base import FeatureExtractor
from evaluations.image_sets import RESIZE_RULE, read_files
from evaluations.metrics.statistics import fit_gaussian
from evaluations.reference import labels_to_write
from evaluations.summary import check_writable, write_or_keep
from guided_diffusion.config.configs import ReadingConfig
from guided_diffusion.config.flags import Parser
from guided_diffusion.data.datasets import find_images
from guided_diffusion.data.image_labels import HELP
from guided_diffusion.data.image_oddities import warn_of_oddities
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.atomic import remove_leftovers, write_atomically
from guided_diffusion.io.images import Reading
from guided_diffusion.io.reading import hash_file

log = logging.getLogger("make_reference")


def main() -> None:
    """Parse the command line, make the file; ``InputError`` for anything wrong with the input."""
    args = _create_parser().parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for flag, lowest in (("image_size", 1), ("num_images", 4), ("batch_size", 1)):
        if getattr(args, flag) < lowest:
            raise InputError(f"--{flag}: found {getattr(args, flag)}, expected at least {lowest}")
    if Path(args.out).suffix != ".npz":
        raise InputError(f"{args.out}: expected a name that ends in .npz")
    check_writable("OUT", args.out)
    pictures = Pictures(args.folder, args.image_size, args.labels, reading_of(args))
    check_room(args.out, min(len(pictures.files), args.num_images) * 3 * args.image_size**2)
    extractor = create_extractor(args)
    if (side := getattr(extractor, "image_size", None)) not in (None, args.image_size):
        raise InputError(
            f"--image_size: found {args.image_size}, expected {side} as in the config.json of the --features classifier"
        )
    arrays = make_reference(pictures, extractor, args.num_images, args.seed)
    without_images = {name: array for name, array in arrays.items() if not name.startswith("arr_")}
    keep = (lambda path: _save(path, without_images)) if "mu" in arrays else None
    write_or_keep(args.out, lambda path: _save(path, arrays), keep, "its statistics, without the images, are")
    log.info("wrote %s", Path(args.out).absolute())


def check_room(path: str, size: int) -> None:
    """Raise ``InputError``, before the network runs, where a file of ``size`` bytes has no room."""
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if (free := shutil.disk_usage(folder).free) < size:
        raise InputError(f"{path}: needs {size / 1e9:.3g} GB, found {free / 1e9:.3g} GB free; --num_images keeps fewer")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    remove_leftovers(path.parent, path.name)
    with write_atomically(path) as file:
        np.savez(file, **arrays)


class Pictures:
    """The images of a folder, searched recursively, or archive, as training sees them: centre crops.

    Resized by halvings with a box filter, then bicubically, so that the short side is ``size``. ``labels`` are those
    of training by the same rule, None where auto finds none. Raises ``InputError`` if there are fewer than 4 images.
    """

    def __init__(self, folder: str, size: int, rule: str = "auto", reading: Reading | None = None):
        self.folder, self.size, self.reading = folder, size, reading or Reading()
        self.files = find_images(folder)
        if len(self.files) < 4:
            raise InputError(f"{folder}: found {counted(len(self.files), 'images')}, expected at least 4")
        if skipped := self.files.describe_skipped():
            log.warning("warning: %s", skipped)
        self.labels = labels_to_write(self.files, rule)
        warn_of_oddities(self.files, reading, lambda line: log.warning("warning: %s", line))

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield uint8 [B, size, size, 3]."""
        return read_files(self.files, batch_size, 3, self.reading, self.size)


def make_reference(pictures: Pictures, extractor: FeatureExtractor, num_images: int, seed: int) -> dict[str, Any]:
    """Return the arrays of a reference file; see the module."""
    count, labels = len(pictures.files), pictures.labels
    kept = np.arange(count)
    if num_images < count:
        kept = np.sort(np.random.default_rng(seed).choice(count, num_images, replace=False))
    batches = _Batches(pictures, extractor.batch_size, kept)
    statistics = {}
    if extractor.uses_stored_statistics:
        found = extractor.compute_activations(batches)
        for suffix, features in (("", found.pool), ("_s", found.spatial)):
            gaussian = fit_gaussian(features)
            statistics |= {f"mu{suffix}": gaussian.mu, f"sigma{suffix}": gaussian.sigma}
    else:
        for _ in batches:
            pass
    settings = {
        "folder": str(Path(pictures.folder).absolute()),
        "found_images": count,
        "kept_images": len(kept),
        "image_size": pictures.size,
        "resize": RESIZE_RULE,
        "resize_by_network": getattr(extractor, "resize", None),
        "quantisation": "uint8, 0..255, rounded to the nearest",
        "class_names": labels and labels.names,
        "seed": seed,
        "engine": extractor.name,
        "network_sha256": hash_file(extractor.weights_path) if getattr(extractor, "weights_path", None) else None,
        "images_sha256": batches.digest.hexdigest(),
    }
    arrays = {"arr_0": batches.kept}
    if labels:
        arrays["arr_1"] = np.array(labels.number(pictures.files), dtype=np.int64)[kept]
    return {**arrays, **statistics, "settings": np.array(json.dumps(settings))}


class _Batches:
    """One pass over all pictures, which keeps the ``chosen`` ones, ascending indices, and a hash of all."""

    def __init__(self, pictures: Pictures, batch_size: int, chosen: np.ndarray):
        self._pictures, self._batch_size, self._chosen = pictures, batch_size, chosen
        self.kept = np.empty((len(chosen), pictures.size, pictures.size, 3), dtype=np.uint8)
        self.digest = hashlib.sha256()

    def __len__(self) -> int:
        return -(-len(self._pictures.files) // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        begin = 0
        for batch in self._pictures.batches(self._batch_size):
            self.digest.update(batch)
            first, last = np.searchsorted(self._chosen, (begin, begin + len(batch)))
            self.kept[first:last] = batch[self._chosen[first:last] - begin]
            begin += len(batch)
            yield batch


def _create_parser() -> Parser:
    parser = Parser("Make a reference file for the evaluator out of a folder of images.", ReadingConfig)
    parser.add_argument("folder", help="folder of images, searched recursively, or a zip or tar archive")
    parser.add_argument("out", help="npz file to write")
    parser.add_argument("--image_size", type=int, required=True, help="side of the square centre crops, in pixels")
    parser.add_argument("--num_images", type=int, default=10_000, help="images to keep; statistics are of all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images to keep")
    parser.add_argument("--labels", default="auto", help=HELP)
    add_network_flags(parser)
    return parser


if __name__ == "__main__":
    from guided_diffusion.distributed.shutdown import run_main

    run_main(main)
