"""scikit-learn's handwritten digits as folders of PNGs and reference files, in three disjoint parts.

    python experiments/digits/data.py FOLDER

    train       the diffusion model and the classifiers that guide it
    evaluator   the network that extracts the samples' features, which never guides
    heldout     the reference that samples are compared with; nothing is trained on it
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from experiments.image_parts import write_part

# Cuts as shares of every class, in the order of a permutation with a fixed seed.
PARTS = {"train": (0.0, 0.5), "evaluator": (0.5, 0.75), "heldout": (0.75, 1.0)}
SPLIT_SEED = 0


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """All digits: uint8 [1797, 8, 8] in 0..255 (the data's 0..16, rescaled) and int64 labels [1797]."""
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Sorted image numbers of each part: disjoint, together all, classes in equal shares up to rounding."""
    random = np.random.RandomState(SPLIT_SEED)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for digit in range(10):
        members = random.permutation(np.flatnonzero(labels == digit))
        for name, (begin, end) in PARTS.items():
            parts[name].append(members[round(begin * len(members)) : round(end * len(members))])
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}


def write_parts(directory: Path) -> None:
    """Write `<part>/<class>_<number>.png` (8-bit grey) and `<part>.npz` for every part."""
    images, labels = load_images()
    for name, numbers in split(labels).items():
        names = (f"{labels[number]}_{number:04d}" for number in numbers)
        write_part(directory / f"{name}.npz", images[numbers][..., None], labels[numbers], names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the digits' three parts into a folder.")
    parser.add_argument("folder", type=Path)
    write_parts(parser.parse_args().folder)
