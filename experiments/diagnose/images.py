"""The labelled images that a diagnosis reads: files as the training of classifiers reads them, or an npz."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.diagnose.diagnosis import FEWEST
from experiments.diagnose.flags import DiagnoseConfig
from experiments.figures.inputs import read_samples
from guided_diffusion.config.class_labels import Classes
from guided_diffusion.config.configs import ModelConfig
from guided_diffusion.data.datasets import find_images, fingerprint, open_dataset
from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.data.image_labels import read_labels
from guided_diffusion.errors import InputError, counted
from guided_diffusion.io.images import Reading
from guided_diffusion.io.reading import hash_file
from guided_diffusion.runs import logger


@dataclass(frozen=True)
class LabelledImages:
    """Images in random order.

    :param numbers: of these images among all there are.
    :param item: number -> (float32 [C, H, W] in [-1, 1], label).
    :param fingerprint: of all images and labels, for the record of a run.
    """

    numbers: Sequence[int]
    item: Callable[[int], tuple[np.ndarray, int]]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] and labels int64 [B]. InputError for a file that is no image."""
        images, labels = zip(*(self.item(self.numbers[position]) for position in positions), strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)


def open_images(
    asked: DiagnoseConfig, reading: Reading, seed: int, model: ModelConfig, classes: Classes
) -> LabelledImages:
    """Open --data_dir, the labels numbered as the classifiers' classes, and choose --num_images of the images.

    :raises InputError: no images, or too few; labels that are none of the classes, or of which nothing tells which.
    """
    if asked.data_dir.endswith(".npz"):
        pixels, labels = read_samples(Path(asked.data_dir))
        count, item = len(pixels), _of_arrays(asked.data_dir, pixels, labels, model, classes)
        told = f"SHA-256 {hash_file(asked.data_dir)[:12]}"
    else:
        files = find_images(asked.data_dir)
        names = classes.names or _names_of(files, asked, classes)
        labels = read_labels(files, asked.labels, classes.names or None)
        dataset = open_dataset(
            files, 1, labels, names, reading, resolution=model.image_size, random_flip=False, channels=model.in_channels
        )
        told = f"{fingerprint(dataset, asked.data_dir)}; labels of {labels.digest()}; {reading}"
        count, item = len(dataset), lambda number: _with_label(dataset[number])
    if count < FEWEST:
        raise InputError(f"--data_dir {asked.data_dir}: found {counted(count, 'images')}, expected at least {FEWEST}")
    if count < asked.num_images:
        logger.log(f"--num_images {asked.num_images}: {asked.data_dir} has {count}, all of which are measured")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    return LabelledImages([int(number) for number in order[: asked.num_images]], item, told)


def _with_label(item: tuple[np.ndarray, dict[str, np.ndarray]]) -> tuple[np.ndarray, int]:
    return item[0], int(item[1]["y"])


def _names_of(files: ImageFiles, asked: DiagnoseConfig, classes: Classes) -> list[str]:
    """Return names of the classes of a checkpoint that knows none: the images', where these have as many."""
    labels = read_labels(files, asked.labels)
    numbers = [str(number) for number in range(classes.count)]
    if labels.source not in ("file name", "folder") and set(labels.labels) <= set(numbers):
        return numbers  # a list of class numbers
    if len(labels.names) != classes.count:
        raise InputError(
            f"--data_dir {asked.data_dir}: found {counted(len(labels.names), 'classes')}, but the classifier has "
            f"{classes.count} and no config.json that names them; expected images of each, or --labels FILE.csv with "
            f"class numbers 0 to {classes.count - 1}"
        )
    return labels.names


def _of_arrays(
    path: str, pixels: np.ndarray, labels: np.ndarray | None, model: ModelConfig, classes: Classes
) -> Callable[[int], tuple[np.ndarray, int]]:
    shape = (model.image_size, model.image_size, model.in_channels)
    if pixels.shape[1:] != shape:
        raise InputError(f"--data_dir {path}: found images of shape {pixels.shape[1:]}, expected {shape}")
    if labels is None:
        raise InputError(f"--data_dir {path}: found no arr_1, expected the images' class numbers")
    if labels.min() < 0 or labels.max() >= classes.count:
        found = f"{labels.min()} to {labels.max()}"
        raise InputError(f"--data_dir {path}: found class numbers {found}, expected 0 to {classes.count - 1}")

    def item(number: int) -> tuple[np.ndarray, int]:
        image_CHW = pixels[number].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        return np.ascontiguousarray(image_CHW), int(labels[number])

    return item
