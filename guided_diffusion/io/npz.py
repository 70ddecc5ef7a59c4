"""Arrays in npz files, read batch by batch and never unpickled."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from guided_diffusion.errors import InputValueError
from guided_diffusion.io.reading import decoding, open_regular, reading_errors

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LARGEST_ARRAY = 1 << 40  # bytes of a member that is streamed
_LARGEST_IN_MEMORY = 1 << 32  # bytes of an array that is read at once
_DEFLATE_RATIO = 1100  # no deflated stream grows by more than 1032


class ArrayReader:
    """Rows of one array in file order. ``shape`` and ``dtype`` are known before any data is read.

    ``file`` is positioned at the array's data. C-ordered arrays are streamed from it: nothing but a batch is
    held in memory. Fortran-ordered ones, whose rows are not contiguous in the file, are loaded whole.
    """

    def __init__(self, label: str, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, fortran_order: bool):
        self.shape, self.dtype = shape, dtype
        self._label, self._file, self._next_row = label, file, 0
        self._loaded: np.ndarray | None = None
        if fortran_order and len(shape) > 1:
            self._check_fits_in_memory()
            self._loaded = self._read(shape[::-1]).transpose()

    def remaining(self) -> int:
        """Return how many rows have not been read yet."""
        return self.shape[0] - self._next_row

    def read_batch(self, batch_size: int) -> np.ndarray | None:
        """Return the next rows, at most ``batch_size``, or None at the end."""
        rows = min(batch_size, self.remaining())
        if rows <= 0:
            return None
        if self._loaded is None:
            batch = self._read((rows, *self.shape[1:]))
        else:
            batch = self._loaded[self._next_row : self._next_row + rows]
        self._next_row += rows
        return batch

    def read_batches(self, batch_size: int) -> Batches:
        """Return the remaining rows as an iterable of known length."""
        return Batches(self, batch_size)

    def read_all(self) -> np.ndarray:
        """Return the whole array, before any batch is read."""
        self._check_fits_in_memory()
        return self._read(self.shape) if self._loaded is None else self._loaded

    def _read(self, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape) * self.dtype.itemsize
        with decoding(self._label, "damaged or truncated", InputValueError):
            data = self._file.read(size)
        if len(data) != size:
            raise InputValueError(f"{self._label}: truncated: expected {size} more bytes, found {len(data)}")
        return np.frombuffer(data, self.dtype).reshape(shape) if size else np.empty(shape, self.dtype)

    def _check_fits_in_memory(self) -> None:
        if (size := math.prod(self.shape) * self.dtype.itemsize) > _LARGEST_IN_MEMORY:
            raise InputValueError(
                f"{self._label}: found {size} bytes to be read at once, expected at most {_LARGEST_IN_MEMORY}"
            )


class Batches:
    """Iterable over a reader's remaining batches; ``len`` is the number of batches left."""

    def __init__(self, reader: ArrayReader, batch_size: int):
        self._reader, self._batch_size = reader, batch_size

    def __len__(self) -> int:
        return -(-self._reader.remaining() // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        while (batch := self._reader.read_batch(self._batch_size)) is not None:
            yield batch


@contextmanager
def open_npz_array(path: str | os.PathLike, arr_name: str) -> Iterator[ArrayReader]:
    """Open array ``arr_name`` of the npz file ``path`` for reading in batches.

    C-ordered arrays are streamed; Fortran-ordered ones are loaded whole. Raises ``InputValueError`` (an
    ``InputError`` and a ``ValueError``) naming the file when it is missing, not an npz, truncated, lacks the
    array, or holds pickled objects, which are never loaded; an ``InputError`` when the system cannot read it.
    """
    with _open_archive(path) as archive:
        if f"{arr_name}.npy" not in archive.namelist():
            found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
            raise InputValueError(f"{path}: missing array {arr_name}; found {found}")
        member = archive.getinfo(f"{arr_name}.npy")
        with decoding(f"{path}: array {arr_name}", "damaged or of an unknown format", InputValueError):
            file = archive.open(member)
        with file:
            yield _make_reader(file, member, path, arr_name)


def read_array(path: str | os.PathLike, name: str) -> np.ndarray:
    """Return a whole array; raises as ``open_npz_array`` does."""
    with open_npz_array(path, name) as reader:
        return reader.read_all()


def list_arrays(path: str | os.PathLike) -> list[str]:
    """Return the names of the arrays in an npz file, in file order."""
    with _open_archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def _open_archive(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    with reading_errors(path):
        try:
            file = open_regular(path)
        except FileNotFoundError as error:
            raise InputValueError(f"{path}: no such file") from error
    with file:
        with decoding(path, "not an npz file, or truncated", InputValueError):
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


def _make_reader(file: BinaryIO, member: zipfile.ZipInfo, path: str | os.PathLike, name: str) -> ArrayReader:
    """Parse the header at the start of ``file`` and check it against the file's size."""
    label = f"{path}: array {name}"
    with decoding(label, "damaged or of an unknown format", InputValueError):
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"npy format {version}")
        shape, fortran_order, dtype = _HEADER_READERS[version](file)
        if any(length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
    if dtype.hasobject:
        raise InputValueError(f"{label} holds pickled objects, which are refused")
    size = math.prod(shape) * dtype.itemsize
    found = member.file_size - file.tell()
    if found != size:
        raise InputValueError(f"{label}: truncated: expected {size} bytes, found {found}")
    if size > min(_LARGEST_ARRAY, _DEFLATE_RATIO * (member.compress_size + 1024)):
        raise InputValueError(f"{label} claims {size} bytes out of {member.compress_size} in the file")
    return ArrayReader(label, file, shape, dtype, fortran_order)
