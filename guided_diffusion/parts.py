"""Finished samples on disk, and the npz file they become."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import InputError
from .files import write_atomically

BLOCK = 1 << 20  # bytes copied at a time

_DAMAGED = (Exception,)  # zipfile, zlib and NumPy raise nearly everything on damaged files


@dataclass(frozen=True)
class Piece:
    """Finished samples: rows of an npz file.

    :param start: number of the sample in the file's first row.
    :param indices: the samples to take from it.
    :param extras: the npz with arrays that `path` lacks; None where it has them all.
    """

    path: Path
    start: int
    indices: range
    extras: Path | None = None

    def rows(self, name: str) -> range:
        """Which rows of an array belong to the samples; fewer than there are samples where the array is of the
        first samples of a batch only."""
        with _open_array(self._file(name), name) as (_, shape, _):
            return range(shape[0])[self.indices.start - self.start : self.indices.stop - self.start]

    def read(self, name: str) -> np.ndarray:
        """The samples' rows of one array."""
        rows = self.rows(name)
        with np.load(self._file(name), allow_pickle=False) as arrays:
            return arrays[name][rows.start : rows.stop]

    def names(self) -> list[str]:
        """Names of the arrays in `path` itself."""
        with np.load(self.path, allow_pickle=False) as arrays:
            return list(arrays.files)

    def copy(self, name: str, member: BinaryIO) -> None:
        """Append the samples' rows of an array to an open npy file, without holding them in memory."""
        rows = self.rows(name)
        with _open_array(self._file(name), name) as (source, shape, dtype):
            size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            if rows.start:
                source.seek(rows.start * size, 1)
            left = len(rows) * size
            while left:
                block = source.read(min(left, BLOCK))
                if not block:
                    raise EOFError(f"array {name} ends early")
                member.write(block)
                left -= len(block)

    def _file(self, name: str) -> Path:
        return self.path if self.extras is None or name.startswith("arr_") else self.extras


class PartStore:
    """Part files `parts/part-<number of first sample>.npz` of a run directory.

    Every file appears whole or not at all, so what is there is finished and never made again.
    """

    def __init__(self, directory: Path):
        self.directory = directory / "parts"

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Store one batch, sample `first` and those after it. InputError when the disk is full."""
        with _naming(self._path(first)), write_atomically(self._path(first)) as file:
            np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def pieces(self) -> list[Piece]:
        """All readable parts, in the order of their samples."""
        found = []
        for path in sorted(self.directory.glob("part-*.npz")):
            with suppress(*_DAMAGED):
                first = int(path.stem.removeprefix("part-"))
                found.append(Piece(path, first, range(first, first + _count_rows(path))))
        return found

    def remove(self, below: int) -> None:
        """Delete the parts of samples below that number, and what interrupted writes left."""
        beyond = {piece.path for piece in self.pieces() if piece.indices.stop > below}
        for path in {*self.directory.glob("part-*.npz"), *self.directory.glob(".part-*.tmp")} - beyond:
            path.unlink(missing_ok=True)
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _path(self, first: int) -> Path:
        return self.directory / f"part-{first:09d}.npz"


def earlier_results(directory: Path, size: str, names: Sequence[str], extras: Path | None) -> list[Piece]:
    """Finished npz files of a run, `samples_<count>x<size>.npz`, the longest first.

    :param names: the arrays that such a file must have.
    :param extras: where the samples' other arrays are.
    """
    found = []
    for path in directory.glob(f"samples_*x{size}.npz"):
        with suppress(*_DAMAGED):
            count = int(path.stem.removeprefix("samples_").removesuffix(f"x{size}"))
            piece = Piece(path, 0, range(count), extras)
            if all(len(piece.rows(name)) == count for name in names):
                found.append(piece)
    return sorted(found, key=lambda piece: -len(piece.indices))


def without_overlap(pieces: Sequence[Piece], total: int) -> list[Piece]:
    """Of samples 0 to total - 1, each that some piece has, once, in order."""
    chosen, reached = [], 0
    for piece in sorted(pieces, key=lambda piece: (piece.indices.start, -piece.indices.stop)):
        rest = range(max(piece.indices.start, reached), min(piece.indices.stop, total))
        if rest:
            chosen.append(Piece(piece.path, piece.start, rest, piece.extras))
            reached = rest.stop
    return chosen


def missing_batches(pieces: Sequence[Piece], total: int, batch_size: int) -> list[range]:
    """The samples below `total` that no piece has, in batches that end at multiples of the batch size.

    So an interrupted run with the same batch size makes the same batches as one that was not.
    """
    batches, first = [], 0
    for begin, end in [*((p.indices.start, p.indices.stop) for p in pieces), (total, total)]:
        while first < begin:
            last = min(begin, (first // batch_size + 1) * batch_size)
            batches.append(range(first, last))
            first = last
        first = max(first, end)
    return batches


def assemble(pieces: Sequence[Piece], names: Sequence[str], path: Path) -> None:
    """Join the pieces' arrays along the first axis into one npz, in constant memory.

    A piece may have any number of rows of an array, also none; the other axes agree. InputError naming the
    file when a piece is damaged or the disk full.
    """
    with (
        _naming(path),
        write_atomically(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name in names:
            total = sum(len(piece.rows(name)) for piece in pieces)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                with _open_array(pieces[0]._file(name), name) as (_, shape, dtype):
                    header = {"descr": dtype.str, "fortran_order": False, "shape": (total, *shape[1:])}
                np.lib.format.write_array_header_1_0(member, header)
                for piece in pieces:
                    try:
                        piece.copy(name, member)
                    except (zipfile.BadZipFile, EOFError) as error:
                        raise InputError(
                            f"{piece.path}: damaged ({error}): delete it, and the same command makes its "
                            f"{len(piece.indices)} samples again"
                        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Failures of writing as InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; what is finished is kept") from error


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """An array of an npz file, as (file at its first byte, shape, dtype)."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, fortran_order, dtype = read_header(member)
        if fortran_order and len(shape) > 1:
            raise ValueError(f"{path}: {name} is in Fortran's order")
        yield member, shape, dtype


def _count_rows(path: Path) -> int:
    with _open_array(path, "arr_0") as (_, shape, _):
        return shape[0]
