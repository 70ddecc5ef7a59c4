"""Reading arrays out of npz files: batch by batch, never unpickling, with one clear line when it fails."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np

from evaluations.metrics.statistics import Gaussian
from guided_diffusion.errors import InputValueError
from guided_diffusion.io.reading import decoding, open_regular, reading_errors

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LARGEST_ARRAY = 1 << 40  # bytes of a member that is streamed
_LARGEST_IN_MEMORY = 1 << 32  # bytes of an array or a batch that is not
_DEFLATE_RATIO = 1100  # no deflated stream grows by more than 1032


class ArrayReader:
    """Rows of one array in file order. ``shape`` and ``dtype`` are known before any data is read."""

    def __init__(self, path: str | os.PathLike, name: str, shape: tuple[int, ...], dtype: np.dtype):
        self.shape = shape
        self.dtype = dtype
        self._label = f"{path}: array {name}"
        self._next_row = 0

    def remaining(self) -> int:
        """How many rows have not been read yet."""
        return self.shape[0] - self._next_row

    def read_batch(self, batch_size: int) -> np.ndarray | None:
        """The next rows, at most ``batch_size``, or None at the end."""
        rows = min(batch_size, self.remaining())
        if rows <= 0:
            return None
        batch = self._read_rows(self._next_row, rows)
        self._next_row += rows
        return batch

    def read_batches(self, batch_size: int) -> Batches:
        """The remaining rows as an iterable of known length."""
        return Batches(self, batch_size)

    def _read_rows(self, begin: int, rows: int) -> np.ndarray:
        raise NotImplementedError


class Batches:
    """Iterable over a reader's remaining batches; ``len`` is the number of batches left."""

    def __init__(self, reader: ArrayReader, batch_size: int):
        self._reader = reader
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self._reader.remaining() // self._batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        while (batch := self._reader.read_batch(self._batch_size)) is not None:
            yield batch


class _StreamReader(ArrayReader):
    """Reads rows straight from the compressed or stored member; nothing else is held in memory."""

    def __init__(self, file: BinaryIO, *args):
        super().__init__(*args)
        self._file = file

    def _read_rows(self, begin: int, rows: int) -> np.ndarray:
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        with decoding(self._label, "damaged or truncated", InputValueError):
            data = self._file.read(size)
        if len(data) != size:
            raise InputValueError(f"{self._label}: truncated: expected {size} more bytes, found {len(data)}")
        return np.frombuffer(data, dtype=self.dtype).reshape(shape)


class _MemoryReader(ArrayReader):
    """Rows of an array already loaded, for layouts whose rows are not contiguous in the file."""

    def __init__(self, array: np.ndarray, path: str | os.PathLike, name: str):
        super().__init__(path, name, array.shape, array.dtype)
        self._array = array

    def _read_rows(self, begin: int, rows: int) -> np.ndarray:
        return self._array[begin : begin + rows]


@contextmanager
def open_npz_array(path: str | os.PathLike, arr_name: str) -> Iterator[ArrayReader]:
    """Open array ``arr_name`` of the npz file ``path`` for reading in batches.

    C-ordered arrays are streamed; Fortran-ordered ones are loaded whole. Raises ``InputValueError`` (an
    ``InputError`` and a ``ValueError``) naming the file when it is missing, not an npz, truncated, lacks the
    array, or holds pickled objects, which are never loaded; an ``InputError`` when the system cannot read it.
    """
    with _open_archive(path) as archive:
        member = _find(archive, path, arr_name)
        with decoding(f"{path}: array {arr_name}", "damaged or of an unknown format", InputValueError):
            file = archive.open(member)
        with file:
            yield _make_reader(file, member, path, arr_name)


def read_array(path: str | os.PathLike, name: str) -> np.ndarray:
    """A whole array; raises as ``open_npz_array`` does."""
    with open_npz_array(path, name) as reader:
        if not reader.shape:
            return reader._read_rows(0, 1).reshape(())
        _check_fits_in_memory(f"{path}: array {name}", int(np.prod(reader.shape, dtype=object)) * reader.dtype.itemsize)
        batch = reader.read_batch(max(1, reader.shape[0]))
        return np.empty(reader.shape, reader.dtype) if batch is None else batch


def _check_fits_in_memory(label: str, size: int) -> None:
    if size > _LARGEST_IN_MEMORY:
        raise InputValueError(f"{label}: found {size} bytes to be read at once, expected at most {_LARGEST_IN_MEMORY}")


def list_arrays(path: str | os.PathLike) -> list[str]:
    """Names of the arrays in an npz file, in file order."""
    with _open_archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextmanager
def open_images(path: str | os.PathLike) -> Iterator[ArrayReader]:
    """The images ``arr_0`` of a samples or reference file: uint8 [N, H, W, C], C 1 or 3, values 0..255.

    Raises ``InputValueError`` as ``open_npz_array`` does and for any other shape or dtype.
    """
    with open_npz_array(path, "arr_0") as reader:
        shape = reader.shape
        if reader.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise InputValueError(
                f"{path}: expected images in arr_0 as uint8 [N, H, W, 1 or 3], "
                f"found {reader.dtype} {list(shape)}"
            )
        yield reader


def read_labels(path: str | os.PathLike, count: int) -> np.ndarray | None:
    """Class labels ``arr_1`` of ``count`` images, int64 [N], or None where the file has none.

    Raises ``InputValueError`` if they are not ``count`` integers.
    """
    if "arr_1" not in list_arrays(path):
        return None
    labels = read_array(path, "arr_1")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputValueError(
            f"{path}: expected {count} integer labels in arr_1, found {labels.dtype} {list(labels.shape)}"
        )
    return labels.astype(np.int64)


def read_stored_statistics(path: str | os.PathLike) -> tuple[Gaussian, Gaussian | None] | None:
    """Return the stored statistics of pooled (``mu``, ``sigma``) and spatial features (``mu_s``, ``sigma_s``).

    None where the file has no ``mu``; the spatial ones are None where it has neither of them, as files of most other
    projects. Raises ``InputValueError`` if one of a pair is missing or they do not fit together.
    """
    present = list_arrays(path)
    if "mu" not in present:
        return None
    found = [_read_gaussian(path, present, suffix) for suffix in ("", "_s")[: 1 + ("mu_s" in present)]]
    return found[0], found[1] if len(found) > 1 else None


def _read_gaussian(path: str | os.PathLike, present: list[str], suffix: str) -> Gaussian:
    if f"sigma{suffix}" not in present:
        raise InputValueError(f"{path}: holds the statistics mu{suffix} but not sigma{suffix}")
    mean, covariance = (read_array(path, f"{name}{suffix}") for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2 or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
        raise InputValueError(
            f"{path}: expected real mu{suffix} [D] and sigma{suffix} [D, D], "
            f"found {mean.dtype} {list(mean.shape)} and {covariance.dtype} {list(covariance.shape)}"
        )
    return Gaussian(mean, covariance)


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Return what ``make_reference`` noted in a file's ``settings``, a JSON text; empty where there is no such text."""
    if "settings" in list_arrays(path):
        with suppress(ValueError, RecursionError):  # somebody else's, of whatever kind
            text = read_array(path, "settings")
            found = json.loads(str(text)) if text.shape == () and text.dtype.kind == "U" else None
            return found if isinstance(found, dict) else {}
    return {}


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


def _find(archive: zipfile.ZipFile, path: str | os.PathLike, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        found = ", ".join(entry.removesuffix(".npy") for entry in archive.namelist()) or "nothing"
        raise InputValueError(f"{path}: missing array {name}; found {found}") from None


def _make_reader(file: BinaryIO, member: zipfile.ZipInfo, path: str | os.PathLike, name: str) -> ArrayReader:
    """Parse the header at the start of ``file`` and choose how to read the rest."""
    with decoding(f"{path}: array {name}", "damaged or of an unknown format", InputValueError):
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"npy format {version}")
        shape, fortran_order, dtype = _HEADER_READERS[version](file)
        if any(length < 0 for length in shape):
            raise ValueError(f"shape {shape}")
    if dtype.hasobject:
        raise InputValueError(f"{path}: array {name} holds pickled objects, which are refused")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    found = member.file_size - file.tell()
    if found != size:
        raise InputValueError(f"{path}: array {name}: truncated: expected {size} bytes, found {found}")
    if size > min(_LARGEST_ARRAY, _DEFLATE_RATIO * (member.compress_size + 1024)):
        raise InputValueError(f"{path}: array {name} claims {size} bytes out of {member.compress_size} in the file")
    if fortran_order and len(shape) > 1:
        _check_fits_in_memory(f"{path}: array {name}", size)
    if not fortran_order or len(shape) < 2:
        return _StreamReader(file, path, name, shape, dtype)
    count = int(np.prod(shape))
    flat = _StreamReader(file, path, name, (count,), dtype)._read_rows(0, count)
    return _MemoryReader(flat.reshape(shape[::-1]).transpose(), path, name)
