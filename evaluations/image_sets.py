"""Image sets from npz files, folders, zip or tar archives, or several of these as one."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from evaluations import reference
from evaluations.metrics.statistics import Gaussian
from evaluations.reference import open_images, read_settings, read_stored_statistics
from guided_diffusion.data.datasets import center_crop_arr
from guided_diffusion.data.image_files import EXPECTED, ImageFiles, is_image_archive, list_images
from guided_diffusion.data.image_labels import read_labels, read_sample_labels
from guided_diffusion.data.image_oddities import Oddities
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import NO_IMAGE, Reading, open_image, read_image
from guided_diffusion.io.npz import list_arrays
from guided_diffusion.io.reading import decoding, hash_file, open_readable, reading_errors
from guided_diffusion.sampling.result_folders import FOR_WEIGHTS, WEIGHTS, find_npz

GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N")  # PIL's modes
_PATTERN = re.compile(r"[*?[]")
RESIZE_RULE = "centre crop; box-filtered halvings, then bicubic"  # as training does

log = logging.getLogger("image_sets")


@dataclass(frozen=True)
class ImageSet:
    """Images that are checked, but not read: ``shape`` is [N, H, W, C], N = 0 if there are statistics only.

    ``parts`` are one file, folder or archive each; ``rows`` the indices of the chosen images, ascending, None for all.
    ``stored`` are the statistics of pooled and spatial features if the set holds any, the latter None where it does
    not; ``settings`` what ``make_reference`` noted, and ``warnings`` what is not used.
    """

    name: str
    shape: tuple[int, ...]
    stored: tuple[Gaussian, Gaussian | None] | None
    parts: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    rows: np.ndarray | None = None

    @property
    def count(self) -> int:
        return self.shape[0]

    @property
    def path(self) -> str:
        """The path that errors name: that of the first part."""
        return self.parts[0].path

    def batches(self, batch_size: int) -> ImageBatches:
        """Return the images as uint8 [B, H, W, C] in order, from the beginning; ``len`` is how many batches."""
        return ImageBatches(self, batch_size)

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        """Return class labels, int64 [N], or None unless all parts have some; ``InputError`` if they do not fit.

        class_names: where files are not called LABEL_INDEX, labels are read as in training, and numbered by these.
        """
        found = [(part.labels(class_names), rows) for part, rows in self.chosen_parts()]
        if any(labels is None for labels, _ in found):
            return None
        return np.concatenate([labels if rows is None else labels[rows] for labels, rows in found])

    def digest(self) -> str:
        """Return the sha256 (hex) of all that the set's files hold, and of which images are chosen."""
        texts = []
        for part, rows in self.chosen_parts():
            chosen = "" if rows is None else f" rows {hashlib.sha256(rows.astype('<i8').tobytes()).hexdigest()}"
            texts.append(part.digest() + chosen)
        return hashlib.sha256("".join(texts).encode()).hexdigest()

    def choose(self, count: int, seed: int) -> ImageSet:
        """Return ``count`` images of the set, drawn without replacement by ``seed``, in their order in it.

        They are drawn because the first ones of a folder are often all of one class. Two sets of one size give the
        same places. A set of at most ``count`` images is returned as it is.
        """
        if self.count <= count:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(self.count, count, replace=False))
        return replace(self, shape=(count, *self.shape[1:]), rows=rows)

    def chosen_parts(self) -> Iterator[tuple[Any, np.ndarray | None]]:
        """Yield the parts with chosen images, each with the indices of these, None for all."""
        begin = 0
        for part in self.parts:
            end = begin + part.shape[0]
            rows = None if self.rows is None else self.rows[(self.rows >= begin) & (self.rows < end)] - begin
            if rows is None or len(rows):
                yield part, rows
            begin = end


class ImageBatches:
    """One pass over a set; ``hashes`` holds a hash of every image that has passed, an integer of 64 bits.

    No batch spans two files, so that each file is read as if it were the only one.
    """

    def __init__(self, images: ImageSet, batch_size: int):
        self._parts, self._batch_size = list(images.chosen_parts()), batch_size
        self.hashes: list[int] = []

    def __len__(self) -> int:
        counts = (part.shape[0] if rows is None else len(rows) for part, rows in self._parts)
        return sum(-(-count // self._batch_size) for count in counts)

    def __iter__(self) -> Iterator[np.ndarray]:
        for part, rows in self._parts:
            batches = part.batches(self._batch_size)
            for batch in batches if rows is None else _pick(batches, rows, self._batch_size):
                for image in batch:
                    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=8).digest()
                    self.hashes.append(int.from_bytes(digest, "little"))
                yield batch


def _pick(batches: Iterator[np.ndarray], rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the images of these indices, ascending, in batches of their own."""
    waiting, begin = [], 0
    for batch in batches:
        waiting += list(batch[rows[(rows >= begin) & (rows < begin + len(batch))] - begin])
        begin += len(batch)
        if len(waiting) >= batch_size:
            yield np.stack(waiting[:batch_size])
            waiting = waiting[batch_size:]
    if waiting:
        yield np.stack(waiting)


def open_image_set(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | ImageSet,
    resize: int | None = None,
    reading: Reading | None = None,
) -> ImageSet:
    """Open one or several inputs: npz files, folders of images (searched recursively), zip or tar archives.

    Several are one set in the order given, with labels if all of them have some, without the statistics stored in
    them. A file named ``LABEL_INDEX.png``, both numbers, carries a label. A sampler's run folder stands for
    its npz file, see ``result_folders``.

    :param resize: bring all images to squares of this side by ``RESIZE_RULE``; statistics stored with images of
        another size are then not used.
    :param reading: how the pixels of image files become 8 bits.

    An open set is returned as it is. Raises ``InputError`` naming the input: nothing there, unreadable,
    images of several sizes, not 8 bits.
    """
    if isinstance(paths, ImageSet):
        return paths
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise InputError("found an empty list of files, expected at least one npz file, folder or archive of images")
    parts = tuple(_open_part(os.fspath(path), resize, reading or Reading()) for path in paths)
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
        settings=first.settings if len(parts) == 1 else {},
        warnings=tuple(line for part in parts for line in part.warnings),
    )


def split_paths(text: str) -> list[str]:
    """Return a flag's ``a.npz,b.npz`` as a list, patterns such as ``rank*.npz`` as the files they match, by number.

    A name that exists as it is may hold commas, stars and the like.
    """
    if os.path.exists(text):
        return [text]
    named = [part for part in text.split(",") if part] or [text]
    return [path for part in named for path in (_matches(part) or [part])]


def _matches(part: str) -> list[str]:
    if os.path.exists(part) or not _PATTERN.search(part):
        return []
    return sorted(glob(part), key=lambda path: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", path)])


class _NpzPart:
    def __init__(self, path: str, resize: int | None = None):
        self.path, self._resize, self.warnings = path, resize, ()
        self.stored, self.settings = read_stored_statistics(path), read_settings(path)
        if self.stored and "arr_0" not in list_arrays(path):
            self.shape = (0, 0, 0, 0)
            return
        with open_images(path) as reader:
            self.shape = reader.shape
        if resize and self.shape[1:3] != (resize, resize):
            if self.stored:
                self.warnings = (f"{path}: its statistics are not used, as they are of images before --resize",)
            self.stored, self.shape = None, (self.shape[0], resize, resize, self.shape[3])

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        return reference.read_labels(self.path, self.shape[0]) if self.shape[0] else None

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        if self.shape[0]:
            with open_images(self.path) as reader:
                for batch in reader.read_batches(batch_size):
                    yield np.stack([_resized(image, self.shape) for image in batch]) if self._resize else batch

    def digest(self) -> str:
        return hash_file(self.path) + _resize_mark(self._resize)


class _FilesPart:
    """Image files in a folder (sorted) or an archive (in its order), grey only if all of them are.

    A folder whose files are all called LABEL_INDEX is sorted by INDEX, so that samples keep the order they had.
    """

    stored, settings, warnings = None, {}, ()

    def __init__(self, path: str, listed: ImageFiles, resize: int | None, reading: Reading):
        self.path, self._listed, self._resize, self._reading = path, listed, resize, reading
        self._numbers = read_sample_labels(self._listed)
        self._hash = hashlib.sha256() if listed.is_folder else None  # an archive has that of its file
        sizes, grey, names, oddities = {}, True, [], Oddities(reading)
        for name, file in listed.stream():
            with decoding(f"{path}: {name}", NO_IMAGE, InputError):
                if self._hash:  # over bytes, as a name need not be text
                    digest = hashlib.file_digest(file, "sha256").digest()
                    self._hash.update(name.encode(errors="surrogateescape") + b"\0" + digest)
                    file.seek(0)
                with open_image(file) as image:
                    turned = ImageOps.exif_transpose(image) if reading.exif_transpose else image
                    sizes.setdefault(turned.size, name)
                    grey &= image.mode in GREY
                    oddities.look(image)
            names.append(name)
            if len(sizes) > 1 and not resize:
                (one, first), (other, second) = sizes.items()
                raise InputError(
                    f"{path}: found images of {_size((0, *one[::-1]))} ({first}) and {_size((0, *other[::-1]))} "
                    f"({second}), expected one size; --resize N crops and scales them to NxN pixels, as "
                    "make_reference.py --image_size N does for a reference"
                )
        if not names:
            skipped = self._listed.describe_skipped().removeprefix(f"{path}: ")
            raise InputError(f"{path}: found no images, expected some of {EXPECTED}; {skipped}".removesuffix("; "))
        if inside := self._listed.describe_subfolders():
            _say_once(logging.INFO, inside)
        for line in filter(None, [self._listed.describe_skipped(), *oddities.describe(path)]):
            _say_once(logging.WARNING, f"warning: {line}")
        width, height = (resize, resize) if resize else next(iter(sizes))
        self.shape = (len(names), height, width, 1 if grey else 3)

    def labels(self, class_names: Sequence[str] | None = None) -> np.ndarray | None:
        if self._numbers:
            return np.array(self._numbers, dtype=np.int64)
        found = read_labels(self._listed, class_names=class_names) if class_names else None
        if found is None or not set(found.labels) <= set(class_names):
            return None
        return np.array(found.number(self._listed, class_names), dtype=np.int64)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        return read_files(self._listed, batch_size, self.shape[3], self._reading, self._resize)

    def digest(self) -> str:
        whole = self._hash.hexdigest() if self._hash else hash_file(self.path)
        read = "" if self._reading == Reading() else f" read by {self._reading}"
        return whole + _resize_mark(self._resize) + read


def _open_part(path: str, resize: int | None, reading: Reading) -> _NpzPart | _FilesPart:
    listing = cache(lambda: list_images(path))  # a folder is walked once
    if os.path.isdir(path):
        found = find_npz(Path(path), listing)
        return _FilesPart(path, listing(), resize, reading) if found is None else _NpzPart(os.fspath(found), resize)
    with open_readable(path, path) as file, reading_errors(path):
        if path.endswith((".pkl", ".pickle")) or file.read(1) == b"\x80":
            raise InputError(_about_pickle(path))
    if path.endswith(WEIGHTS):
        raise InputError(f"{path}: found a network's weights, expected images; {FOR_WEIGHTS}")
    return _FilesPart(path, listing(), resize, reading) if is_image_archive(path) else _NpzPart(path, resize)


def read_files(
    files: ImageFiles, batch_size: int, channels: int, reading: Reading, resize: int | None = None
) -> Iterator[np.ndarray]:
    """Yield image files in order as uint8 [B, H, W, channels], 1 or 3; with ``resize``, by ``RESIZE_RULE``.

    Raises ``InputError`` naming a file that is no image.
    """
    batch: list[np.ndarray] = []
    for name, file in files.stream():
        image = read_image(f"{files.title}: {name}", file, "L" if channels == 1 else "RGB", reading)
        pixels = center_crop_arr(image, resize) if resize else np.asarray(image)
        batch.append(pixels.reshape(*pixels.shape[:2], channels))
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _about_pickle(path: str) -> str:
    return (
        f"{path}: found a pickle, which can run any code and is never loaded, expected an npz file; of statistics that "
        f"you trust: python -c \"import pickle, numpy; d = pickle.load(open('{path}', 'rb')); d = d.get('fid', d); "
        f"numpy.savez('{Path(path).stem}.npz', mu=d['mu'], sigma=d['sigma'])\""
    )


def _resized(pixels_HWC: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bring an image to the size of ``shape`` [N, H, W, C] by ``RESIZE_RULE``."""
    image = Image.fromarray(pixels_HWC[..., 0] if shape[3] == 1 else pixels_HWC)
    return center_crop_arr(image, shape[1]).reshape(shape[1:])


def _resize_mark(resize: int | None) -> str:
    """Return what marks the digest of images that are not used as stored."""
    return f" resized to {resize}" if resize else ""


@lru_cache
def _say_once(level: int, line: str) -> None:
    log.log(level, "%s", line)


def _size(shape: Sequence[Any]) -> str:
    return f"{shape[1]}x{shape[2]} pixels" + (f", {shape[3]} channels" if len(shape) > 3 else "")
