"""Sets of images to judge, whatever they come in: npz files, folders, zip or tar archives, several as one."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from evaluations.metrics import npz
from evaluations.metrics.npz import list_arrays, open_images, read_stored_statistics
from evaluations.metrics.statistics import Gaussian
from guided_diffusion.errors import InputError
from guided_diffusion.files import check_readable, decoding, hash_file
from guided_diffusion.image_files import EXPECTED, is_image_archive, list_images
from guided_diffusion.image_labels import read_labels, read_sample_labels
from guided_diffusion.safe_images import NO_IMAGE, Oddities, open_image, read_image

_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes
_DAMAGED = "damaged or truncated archive"

log = logging.getLogger("image_sets")


@dataclass(frozen=True)
class ImageSet:
    """Checked, but not read: ``shape`` is [N, H, W, C], N = 0 if there are statistics only.

    ``stored`` are the statistics of pooled and spatial features if it holds any.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[Gaussian, Gaussian] | None
    parts: tuple[_NpzPart | _FilesPart, ...]

    @property
    def count(self) -> int:
        return self.shape[0]

    def batches(self, batch_size: int) -> ImageBatches:
        """The images as uint8 [B, H, W, C] in order, from the beginning; ``len`` is how many batches."""
        return ImageBatches(self, batch_size)

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        """Class labels, int64 [N], or None unless all parts have some; ``InputError`` if they do not fit.

        class_names: where files are not called LABEL_INDEX, labels are read as training does, and numbered by these.
        """
        found = [part.labels(class_names) for part in self.parts]
        return None if any(labels is None for labels in found) else np.concatenate(found)

    def digest(self) -> str:
        """sha256 (hex) of all that the set's files hold."""
        return hashlib.sha256("".join(part.digest() for part in self.parts).encode()).hexdigest()


class ImageBatches:
    """One pass over a set. No batch spans two files, so that each file is read as if it came alone."""

    def __init__(self, images: ImageSet, batch_size: int):
        self._parts = images.parts
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sum(-(-part.shape[0] // self._batch_size) for part in self._parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self._parts:
            yield from part.batches(self._batch_size)


def open_image_set(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> ImageSet:
    """Look at one or several inputs: npz files, folders of images (searched recursively), zip or tar archives.

    Several are one set in the order given, with labels if all of them have some; statistics stored in them are
    then of no use. A file named ``LABEL_INDEX.png``, both numbers, carries a label.

    Raises ``InputError`` naming the input: nothing there, unreadable, images of several sizes, not 8 bits.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    parts = tuple(_open_part(os.fspath(path)) for path in paths)
    first = parts[0]
    for part in parts[1:]:
        if part.shape[1:] != first.shape[1:] or not part.shape[0]:
            raise InputError(
                f"{part.path}: found images of {_size(part.shape)}, expected {_size(first.shape)} as in {first.path}"
            )
    return ImageSet(
        name=",".join(str(Path(part.path).absolute()) for part in parts),
        shape=(sum(part.shape[0] for part in parts), *first.shape[1:]),
        stored=first.stored if len(parts) == 1 else None,
        parts=parts,
    )


def split_paths(text: str) -> list[str]:
    """A flag's ``a.npz,b.npz`` as a list; a name that exists as it is may hold commas."""
    return [text] if os.path.exists(text) else [part for part in text.split(",") if part] or [text]


class _NpzPart:
    def __init__(self, path: str):
        self.path = path
        self.stored = read_stored_statistics(path)
        if self.stored and "arr_0" not in list_arrays(path):
            self.shape = (0, 0, 0, 0)
            return
        with open_images(path) as reader:
            self.shape = reader.shape

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        return npz.read_labels(self.path, self.shape[0]) if self.shape[0] else None

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        if self.shape[0]:
            with open_images(self.path) as reader:
                yield from reader.read_batches(batch_size)

    def digest(self) -> str:
        return hash_file(self.path)


class _FilesPart:
    """Image files in a folder (sorted) or an archive (in its order). Grey only if all of them are.

    A folder whose files are all called LABEL_INDEX is sorted by INDEX, so that samples keep the order they had.
    """

    stored = None

    def __init__(self, path: str):
        self.path = path
        self._listed = list_images(path)
        self._numbers = read_sample_labels(self._listed)
        sizes, grey, names, oddities = {}, True, [], Oddities()
        for name, file in self._files():
            with decoding(f"{path}: {name}", NO_IMAGE, InputError), open_image(file) as image:
                sizes.setdefault(image.size, name)
                grey &= image.mode in _GREY
                oddities.look(image)
            names.append(name)
            if len(sizes) > 1:
                (one, first), (other, second) = sizes.items()
                raise InputError(
                    f"{path}: found images of {_size((0, *one[::-1]))} ({first}) and {_size((0, *other[::-1]))} "
                    f"({second}), expected one size"
                )
        if not names:
            skipped = self._listed.describe_skipped().removeprefix(f"{path}: ")
            raise InputError(f"{path}: found no images, expected some of {EXPECTED}; {skipped}".removesuffix("; "))
        for line in filter(None, [self._listed.describe_skipped(), *oddities.describe(path, remedies=False)]):
            _warn_once(line)
        ((width, height),) = sizes
        self.shape = (len(names), height, width, 1 if grey else 3)

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        if self._numbers:
            return np.array(self._numbers, dtype=np.int64)
        found = read_labels(self._listed, class_names=class_names) if class_names else None
        if found is None or not set(found.labels) <= set(class_names):
            return None
        return np.array(found.number(self._listed, class_names), dtype=np.int64)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        for name, file in self._files():
            image = read_image(f"{self.path}: {name}", file, "L" if self.shape[3] == 1 else "RGB")
            batch.append(np.asarray(image).reshape(self.shape[1:]))
            if len(batch) == batch_size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)

    def digest(self) -> str:
        if Path(self.path).is_file():
            return hash_file(self.path)
        whole = hashlib.sha256()
        for name, file in self._files():  # a name need not be text
            whole.update(name.encode(errors="surrogateescape") + b"\0" + hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    def _files(self) -> Iterator[tuple[str, BinaryIO]]:
        return self._listed.stream()


def _open_part(path: str) -> _NpzPart | _FilesPart:
    if os.path.isdir(path):
        return _FilesPart(path)
    check_readable(path, path)
    return (_FilesPart if is_image_archive(path) else _NpzPart)(path)


@lru_cache
def _warn_once(line: str) -> None:
    log.warning("warning: %s", line)


def _size(shape: Sequence[Any]) -> str:
    return f"{shape[1]}x{shape[2]} pixels" + (f", {shape[3]} channels" if len(shape) > 3 else "")
