"""CIFAR-10 as folders of PNGs and reference files, in three disjoint parts.

    python experiments/cifar10/data.py --size 16 FOLDER

reads cifar10_train.zip and cifar10_test.zip (JPEG files class_number.jpg, 32x32) from --zips, else from the folder
that CIFAR10_ZIPS names, else from ../shared/data beside the repository.

    train       four fifths of the training images: the diffusion models and the classifiers that guide them
    evaluator   the others: the network that extracts the samples' features, which never guides
    heldout     the test images, the reference that samples are compared with; nothing is trained on them

The same command again writes what is missing.
"""

from __future__ import annotations

import argparse
import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.image_parts import write_part
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

VARIABLE = "CIFAR10_ZIPS"
FILES = {"train": "cifar10_train.zip", "evaluator": "cifar10_train.zip", "heldout": "cifar10_test.zip"}
SIDE = 32  # of the images, pixels
TRAIN_SHARE = 0.8  # of every class; the rest is the evaluator's
SPLIT_SEED = 0


def zips_folder(given: Path | None = None) -> Path:
    """The folder with the archives. InputError, saying where else they may be, if they are not there."""
    folder = given or Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data")
    for name in sorted(set(FILES.values())):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} in it, expected CIFAR-10; --zips or {VARIABLE} says where it is")
    return folder


def part_members(names: Sequence[str], part: str) -> list[str]:
    """Sorted names of a part's images among those of its archive; classes in equal shares up to rounding."""
    if FILES[part] == FILES["heldout"]:
        return sorted(names)
    random = np.random.RandomState(SPLIT_SEED)
    chosen = []
    for label in sorted({class_of(name) for name in names}):
        members = random.permutation(sorted(name for name in names if class_of(name) == label))
        cut = round(TRAIN_SHARE * len(members))
        chosen += list(members[:cut] if part == "train" else members[cut:])
    return sorted(map(str, chosen))


def class_of(name: str) -> str:
    """The class in a file's name."""
    return Path(name).name.split("_")[0]


def read_image(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """uint8 [size, size, 3]; smaller than 32, every pixel is the mean of a square of it.

    InputError for what is no 32x32 image.
    """
    try:
        image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{archive.filename}: {name}: {error}") from None
    if image.size != (SIDE, SIDE):
        raise InputError(f"{archive.filename}: {name}: found {image.size}, expected {SIDE}x{SIDE} pixels")
    return np.asarray(image.reduce(SIDE // size))


def write_from_zip(zips: Path, directory: Path, part: str, size: int) -> None:
    """Write `<part>/<class>_<number>.png` and then `<part>.npz`, if they are not there.

    InputError for an archive that holds something else, or an npz file of images of another size.
    """
    reference = directory / f"{part}.npz"
    if (directory / part).is_dir() and reference.is_file():
        with np.load(reference) as file:
            found = file["arr_0"].shape[1]
        if found != size:
            raise InputError(f"{reference}: found images of side {found}, expected {size}; use another folder")
        return
    with zipfile.ZipFile(zips / FILES[part]) as archive:
        names = part_members([name for name in archive.namelist() if name.endswith(".jpg")], part)
        images = np.stack([read_image(archive, name, size) for name in names])
    classes, labels = np.unique([class_of(name) for name in names], return_inverse=True)
    write_part(reference, images, labels, (Path(name).stem for name in names))
    print(f"{directory / part}: {len(names):,} images of {len(classes)} classes, {size}x{size}", flush=True)


def main() -> None:
    """Write the three parts. InputError for archives that are missing or hold something else."""
    parser = argparse.ArgumentParser(description="Write CIFAR-10's three parts into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, choices=(8, 16, 32), default=SIDE, help="side of the images, pixels (32)")
    parser.add_argument("--zips", type=Path, metavar="DIR", help=f"with the archives (${VARIABLE}, ../shared/data)")
    args = parser.parse_args()
    zips = zips_folder(args.zips)
    for part in FILES:
        write_from_zip(zips, args.folder, part, args.size)


if __name__ == "__main__":
    shutdown.run_main(main)
