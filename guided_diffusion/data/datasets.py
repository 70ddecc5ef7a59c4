"""Images as endless batches of training data: cropped to a square, perhaps flipped, and scaled to [-1, 1].

image_files.py lists the files, image_labels.py reads their classes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from guided_diffusion.data.image_files import SUFFIXES, UPSTREAMS, ImageFiles, list_images, open_image_file
from guided_diffusion.data.image_labels import Labels, read_labels
from guided_diffusion.data.image_oddities import warn_of_oddities
from guided_diffusion.distributed import collectives
from guided_diffusion.errors import InputError, InputValueError, counted
from guided_diffusion.io.images import NO_IMAGE, Reading, read_image
from guided_diffusion.io.reading import decoding
from guided_diffusion.runs import logger

_MODES = {1: "L", 3: "RGB"}

Batch = tuple[torch.Tensor, dict[str, torch.Tensor]]


def load_data(
    *,
    data_dir: str,
    batch_size: int,
    image_size: int,
    class_cond: bool = False,
    deterministic: bool = False,
    random_crop: bool = False,
    random_flip: bool = True,
    channels: int = 3,
    class_names: Sequence[str] | None = None,
    labels: str | Labels = "filename",
    files: ImageFiles | None = None,
    reading: Reading | None = None,
) -> Iterator[Batch]:
    """Yield endless batches of the images under ``data_dir``, which is searched recursively.

    Each batch is ``(images, condition)``: float32 ``[batch_size, channels, image_size, image_size]`` in
    [-1, 1], and a dict that holds int64 ``y`` ``[batch_size]`` when ``class_cond`` is set. With several
    processes rank r gets every world-size-th file from the r-th; incomplete last batches are dropped.

    data_dir: a folder, local or remote in a form that blobfile knows, or a zip or tar archive.
    deterministic: keep the files' order; otherwise each epoch is shuffled with torch's global generator.
    random_crop: crop at random scale and place, otherwise the centre.
    random_flip: mirror left to right with probability 1/2.
    channels: 3 for RGB, 1 for grey.
    class_names: number the labels by this list (such as a classifier's) instead of the folder's own.
    labels: a rule of ``read_labels``, by default upstream's, or its result.
    files: the result of ``find_images``; by default the files with upstream's four suffixes.
    reading: how pixels become 8 bits; by default as upstream does.

    Arguments and folder are checked here, before the first batch. Raises ``InputError`` if the folder is
    missing, empty or too small for a batch on every rank, if a label is not in ``class_names``, or, while
    iterating, if an image cannot be read; for an empty ``data_dir`` the error is a ``ValueError`` too.
    """
    files, found = files or find_images(data_dir, UPSTREAMS), None
    if class_cond:
        found = read_labels(files, labels, class_names) if isinstance(labels, str) else labels
    dataset = open_dataset(
        files,
        batch_size,
        found,
        class_names,
        reading,
        resolution=image_size,
        random_crop=random_crop,
        random_flip=random_flip,
        channels=channels,
        shard=collectives.get_rank(),
        num_shards=collectives.get_world_size(),
    )
    return _batches_for_ever(dataset, batch_size, shuffle=not deterministic)


def open_dataset(
    files: ImageFiles,
    batch_size: int,
    labels: Labels | None = None,
    class_names: Sequence[str] | None = None,
    reading: Reading | None = None,
    **options: Any,
) -> ImageDataset:
    """Open images as a dataset, with `labels` numbered by `class_names` (None: by their own classes).

    Logs how many images and classes there are and what was skipped, and warns of what is unusual.

    batch_size: of each process; ``InputError`` where the images do not suffice for it. options: of ``ImageDataset``.
    """
    if batch_size < 1:
        raise InputValueError(f"batch_size: expected at least 1, found {batch_size}")
    if skipped := files.describe_skipped():
        logger.warning(skipped)
    world_size = collectives.get_world_size()
    smallest_share = len(files) // world_size
    if smallest_share < batch_size:
        shared = f", {smallest_share} for each of {world_size} processes" if world_size > 1 else ""
        raise InputError(
            f"{files.title}: found {counted(len(files), 'images')}{shared}, expected at least a batch of "
            f"--batch_size {batch_size}; lower --batch_size or add images"
        )
    logger.log(f"{files.title}: {labels.describe() if labels else counted(len(files), 'images')}")
    warn_of_labels(labels)
    if collectives.get_rank() == 0:
        warn_of_oddities(files, reading, logger.warning)
    return ImageDataset(
        image_paths=[files.path(name) for name in files.names],
        classes=labels.number(files, class_names) if labels else None,
        open_file=files.open,
        reading=reading,
        **options,
    )


def warn_of_labels(labels: Labels | None) -> None:
    """Log the warnings about labels."""
    for line in labels.warnings if labels else ():
        logger.warning(line)


def find_images(data_dir: str, suffixes: Collection[str] = SUFFIXES, flag: str = "data_dir") -> ImageFiles:
    """List the images of a folder or archive to train on. InputError unless there is one and each can be opened alone.

    :param flag: the one that names data_dir, for errors.
    """
    if not data_dir:
        raise InputValueError(f"{flag}: expected a folder of images, found an empty string")
    files = list_images(data_dir, f"{flag} {data_dir}", suffixes)
    if not files.names:
        line = f"{files.title}: expected images ({', '.join(sorted(suffixes))}), found none in the tree"
        skipped = files.describe_skipped().removeprefix(f"{files.title}: ")
        raise InputError(f"{line} ({skipped})" if skipped else line)
    if not files.random_access:
        raise InputError(f"{files.title}: found a packed tar; expected a folder, a zip or an unpacked tar")
    return files


def fingerprint(dataset: ImageDataset, data_dir: str) -> str:
    """Return the number of images and a digest of their names in data_dir, for a run's flags."""
    names = "\n".join(path.removeprefix(data_dir).lstrip("/") for path in dataset.local_images)
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{len(dataset)} with names of SHA-256 {digest}"


class ImageDataset(Dataset):
    """One process's share of a list of image files.

    Items are ``(image, condition)``: float32 ``[channels, resolution, resolution]`` in [-1, 1], and a dict
    with int64 ``y`` if ``classes`` (one number a path) are given. Crops and flips draw from Python's global
    ``random``. Reading raises ``InputError`` naming a file that is no image.

    open_file: opens a path. reading: how pixels become 8 bits.
    """

    def __init__(
        self,
        resolution: int,
        image_paths: Sequence[str],
        classes: Sequence[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
        random_crop: bool = False,
        random_flip: bool = True,
        channels: int = 3,
        open_file: Callable[[str], BinaryIO] = open_image_file,
        reading: Reading | None = None,
    ):
        super().__init__()
        if channels not in _MODES:
            raise InputValueError(f"channels: expected 1 or 3, found {channels}")
        self.resolution = resolution
        self.local_images = image_paths[shard::num_shards]
        self.local_classes = None if classes is None else classes[shard::num_shards]
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.channels = channels
        self._open_file, self._reading = open_file, reading

    def __len__(self) -> int:
        return len(self.local_images)

    def __getitem__(self, idx: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        crop = random_crop_arr if self.random_crop else center_crop_arr
        pixels_HW = crop(self._read(self.local_images[idx]), self.resolution)
        if self.random_flip and random.random() < 0.5:
            pixels_HW = np.fliplr(pixels_HW)
        pixels_HWC = pixels_HW.reshape(self.resolution, self.resolution, self.channels)
        image_CHW = np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1), dtype=np.float32) / 127.5 - 1
        if self.local_classes is None:
            return image_CHW, {}
        return image_CHW, {"y": np.array(self.local_classes[idx], dtype=np.int64)}

    def _read(self, path: str) -> Image.Image:
        """Read the first frame. Raises ``InputError`` naming the file if it is no image."""
        with decoding(path, NO_IMAGE, InputError), self._open_file(path) as file:
            return read_image(path, file, _MODES[self.channels], self._reading)


def center_crop_arr(pil_image: Image.Image, image_size: int) -> np.ndarray:
    """Return the middle square of an image whose short side is first resized to ``image_size``.

    Returns the image's own values, ``[image_size, image_size]`` or with a last axis for the channels.
    """
    pixels = np.asarray(_resize_short_side(pil_image, image_size))
    top, left = (pixels.shape[0] - image_size) // 2, (pixels.shape[1] - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size]


def random_crop_arr(
    pil_image: Image.Image, image_size: int, min_crop_frac: float = 0.8, max_crop_frac: float = 1.0
) -> np.ndarray:
    """Return a random square whose side is between two fractions of the image's short side, at ``image_size``.

    Draws three numbers from Python's global ``random``: the short side to resize to, the first row, the
    first column. Returns as ``center_crop_arr`` does.
    """
    short_side = random.randint(math.ceil(image_size / max_crop_frac), math.ceil(image_size / min_crop_frac))
    pixels = np.asarray(_resize_short_side(pil_image, short_side))
    top = random.randint(0, pixels.shape[0] - image_size)
    left = random.randint(0, pixels.shape[1] - image_size)
    return pixels[top : top + image_size, left : left + image_size]


def _resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Resize in proportion. Box-filtered halvings come first: bicubic alone would alias a strong shrink."""
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def _list_image_files_recursively(data_dir: str) -> list[str]:
    """Return all image files below a folder: depth first, files and subfolders in one sorted order."""
    files = list_images(data_dir, suffixes=UPSTREAMS)
    return [files.path(name) for name in files.names]


def _batches_for_ever(dataset: ImageDataset, batch_size: int, shuffle: bool) -> Iterator[Batch]:
    """Yield epoch after epoch, each from a new worker process, as upstream does: the random numbers are the same."""
    loader = DataLoader(
        WorkerItems(dataset),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=1,
        drop_last=True,
        collate_fn=collate_or_error,
    )
    while True:
        yield from batches_of(loader)


def batches_of(loader: DataLoader) -> Iterator[Batch]:
    """Yield a loader's batches; raise an ``InputError`` that `collate_or_error` returns."""
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class WorkerItems(Dataset):
    """A dataset for worker processes: an ``InputError`` is returned as an item.

    Raised in the worker it would reach the user with two tracebacks folded into its line.
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except InputError as error:
            return error


def collate_or_error(items: list[Any]) -> Any:
    """Return a batch of items, or the first ``InputError`` among them."""
    return next((item for item in items if isinstance(item, InputError)), None) or default_collate(items)
