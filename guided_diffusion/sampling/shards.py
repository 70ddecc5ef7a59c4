"""Finished samples on disk, and the npz file they become."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from guided_diffusion.errors import DamagedError, InputError
from guided_diffusion.io.atomic import set_aside, write_atomically
from guided_diffusion.io.reading import decoding, exists, list_names, open_regular, reading_errors
from guided_diffusion.runs import logger

BLOCK = 1 << 20  # bytes copied at a time

_PART = re.compile(r"part-(\d{9,})\.npz")


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
        first samples of the run only."""
        with _open_array(self._file(name), name) as (_, shape, _):
            return range(shape[0])[self.indices.start - self.start : self.indices.stop - self.start]

    def names(self) -> list[str]:
        """Names of the arrays in `path` itself."""
        with _open_archive(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of the samples' rows of an array, a block at a time.

        DamagedError, at the end at the latest, where the array is not as it was written.
        """
        rows = self.rows(name)
        with _open_array(self._file(name), name) as (source, shape, dtype):
            size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            begin, end, place = rows.start * size, rows.stop * size if rows else 0, 0
            while block := source.read(BLOCK):  # to the array's end, where its checksum is compared
                wanted = block[max(begin - place, 0) : max(end - place, 0)]
                place += len(block)
                if wanted:
                    yield wanted
            if place != shape[0] * size:
                raise EOFError(f"array {name} ends early")

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
        with write_atomically(self._path(first)) as file:
            np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def pieces(self) -> list[Piece]:
        """All parts, in the order of their samples; damaged ones are set aside.

        InputError where one cannot be read: it may well be intact, so that nothing may be made in its place.
        """
        found = []
        for name in list_names(self.directory):
            if match := _PART.fullmatch(name):
                path, first = self.directory / name, int(match[1])
                try:
                    found.append(Piece(path, first, range(first, first + _count_rows(path))))
                except DamagedError as error:
                    set_damaged_aside(error)
        return found

    def remove(self, below: int) -> None:
        """Delete the parts of samples below that number, which a finished file holds; as far as that is possible."""
        with suppress(InputError):
            for piece in self.pieces():
                if piece.indices.stop <= below:
                    with suppress(OSError):
                        piece.path.unlink(missing_ok=True)
        with suppress(OSError):  # other parts, damaged ones, or gone already
            self.directory.rmdir()

    def _path(self, first: int) -> Path:
        return self.directory / f"part-{first:09d}.npz"


def result_paths(directory: Path, size: str) -> dict[Path, int]:
    """The files `samples_<count>x<size>.npz` of a directory, and their counts."""
    pattern = re.compile(rf"samples_(\d+)x{size}\.npz")
    found = {directory / name: pattern.fullmatch(name) for name in list_names(directory)}
    return {path: int(match[1]) for path, match in found.items() if match}


def check_result(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Read a finished npz file to its end. DamagedError where a checksum or the shape of an array is another one."""
    for name, expected in shapes.items():
        with _open_array(path, name) as (_, shape, _):
            if shape != expected:
                raise DamagedError(f"{path}: array {name}: found {list(shape)}, expected {list(expected)}", path)
        for _ in Piece(path, 0, range(expected[0])).blocks(name):
            pass


def set_damaged_aside(error: DamagedError) -> None:
    """Rename the file that an error is about, if it is still there, with a warning."""
    kept = f"kept as {set_aside(error.path).name}" if exists(error.path) else "gone"
    logger.warning(f"{error}; {kept}; its samples are made again if no other file has them")


def read_array(path: Path, name: str, rows: int | None = None) -> np.ndarray:
    """The first rows of an array, or all of it. Raises as `assemble` does."""
    with _open_array(path, name) as (source, shape, dtype):
        shape = (shape[0] if rows is None else min(rows, shape[0]), *shape[1:])
        data = source.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)


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


def assemble(
    pieces: Sequence[Piece], names: Sequence[str], path: Path, commit: Callable[[Path], None] | None = None
) -> None:
    """Join the pieces' arrays along the first axis into one npz, in constant memory.

    A piece may have any number of rows of an array, also none; the other axes agree.

    :param commit: see `files.write_atomically`.
    :raises DamagedError: a piece is damaged, lacks an array or has vanished.
    :raises InputError: a piece cannot be read, or the file cannot be written.
    """
    with write_atomically(path, commit) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            total = sum(len(piece.rows(name)) for piece in pieces)
            with _open_array(pieces[0]._file(name), name) as (_, shape, dtype):
                header = {"descr": dtype.str, "fortran_order": False, "shape": (total, *shape[1:])}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in pieces:
                    for block in piece.blocks(name):
                        member.write(block)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An npz file. DamagedError, also for what the block raises; InputError where it cannot be read."""
    damaged = partial(DamagedError, path=path)
    try:
        with reading_errors(path):
            file = open_regular(path)
    except FileNotFoundError:
        raise damaged(f"{path}: not there any more") from None
    with decoding(path, "damaged", damaged), file, zipfile.ZipFile(file) as archive:
        yield archive


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """An array of an npz file, as (file at its first byte, shape, dtype)."""
    with _open_archive(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, fortran_order, dtype = read_header(member)
        if fortran_order and len(shape) > 1:
            raise ValueError(f"{path}: {name} is in Fortran's order")
        if dtype.hasobject:
            raise ValueError(f"{path}: {name} holds pickled objects")
        yield member, shape, dtype


def _count_rows(path: Path) -> int:
    with _open_array(path, "arr_0") as (_, shape, _):
        return shape[0]
