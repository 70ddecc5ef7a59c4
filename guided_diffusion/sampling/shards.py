"""Finished samples on disk, and the npz file they become."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from guided_diffusion.errors import DamagedError, InputError
from guided_diffusion.io.atomic import set_aside, write_atomically
from guided_diffusion.io.reading import decoding, exists, list_names, open_regular, reading_errors
from guided_diffusion.runs import logger

BLOCK = 1 << 20  # bytes copied at a time

_NAME = re.compile(r"part-(\d{9,})\.npz")


@dataclass(frozen=True)
class Shard:
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
        """Return the rows of an array that belong to the samples; fewer where it only has the run's first samples."""
        with _open_array(self._file(name), name) as (_, shape, _):
            return range(shape[0])[self.indices.start - self.start : self.indices.stop - self.start]

    def names(self) -> list[str]:
        """Return the names of the arrays in `path` itself."""
        with _open_archive(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of the samples' rows, a block at a time; DamagedError, at the end at the latest."""
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


class ShardStore:
    """The files `parts/part-<number of first sample>.npz` of a run directory.

    Each is written atomically, so an existing one is finished and never made again.
    """

    def __init__(self, directory: Path):
        self.directory = directory / "parts"

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Store one batch, which begins with sample `first`. InputError when the disk is full."""
        with write_atomically(self.directory / f"part-{first:09d}.npz") as file:
            np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})

    def shards(self) -> list[Shard]:
        """Return all shards in the order of their samples; damaged ones are set aside.

        InputError where one cannot be read: it may be intact and must not be replaced.
        """
        found = []
        for name in list_names(self.directory):
            if match := _NAME.fullmatch(name):
                path, first = self.directory / name, int(match[1])
                try:
                    with _open_array(path, "arr_0") as (_, shape, _):
                        found.append(Shard(path, first, range(first, first + shape[0])))
                except DamagedError as error:
                    set_damaged_aside(error)
        return found

    def remove(self, below: int) -> None:
        """Delete the shards of samples below that number, which a finished file holds, as far as possible."""
        with suppress(InputError):
            for shard in self.shards():
                if shard.indices.stop <= below:
                    with suppress(OSError):
                        shard.path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or gone already
            self.directory.rmdir()


@contextmanager
def writing_behind(write: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Yield a function that calls `write` in a thread of its own, one call at a time, in order; wait for the last.

    A call returns at once unless the one before is still running, so at most two results are in memory. An exception
    is raised by the next call, or at the end. Results handed over before the with-block fails are still written.
    """
    running = Future()
    running.set_result(None)

    def hand_over(*args: Any) -> None:
        nonlocal running
        running.result()
        running = pool.submit(write, *args)

    with ThreadPoolExecutor(max_workers=1) as pool:
        yield hand_over
    running.result()


def result_paths(directory: Path, size: str) -> dict[Path, int]:
    """Return the files `samples_<count>x<size>.npz` of a directory with their counts."""
    found = {directory / name: re.fullmatch(rf"samples_(\d+)x{size}\.npz", name) for name in list_names(directory)}
    return {path: int(match[1]) for path, match in found.items() if match}


def check_result(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Read a finished npz file to its end; DamagedError where the checksum or shape of an array is wrong."""
    for name, expected in shapes.items():
        with _open_array(path, name) as (_, shape, _):
            if shape != expected:
                raise DamagedError(f"{path}: array {name}: found {list(shape)}, expected {list(expected)}", path)
        for _ in Shard(path, 0, range(expected[0])).blocks(name):
            pass


def set_damaged_aside(error: DamagedError) -> None:
    """Rename the damaged file, if it still exists, with a warning."""
    kept = f"kept as {set_aside(error.path).name}" if exists(error.path) else "gone"
    logger.warning(f"{error}; {kept}; its samples are made again if no other file has them")


def read_array(path: Path, name: str, rows: int | None = None) -> np.ndarray:
    """Return the first rows of an array, or all of it. Raises as `assemble` does."""
    with _open_array(path, name) as (source, shape, dtype):
        shape = (shape[0] if rows is None else min(rows, shape[0]), *shape[1:])
        data = source.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)


def without_overlap(shards: Sequence[Shard], total: int) -> list[Shard]:
    """Return shards that hold each available sample below `total` exactly once, in order."""
    chosen, reached = [], 0
    for shard in sorted(shards, key=lambda shard: (shard.indices.start, -shard.indices.stop)):
        rest = range(max(shard.indices.start, reached), min(shard.indices.stop, total))
        if rest:
            chosen.append(replace(shard, indices=rest))
            reached = rest.stop
    return chosen


def missing_batches(shards: Sequence[Shard], total: int, batch_size: int) -> list[range]:
    """Return the samples below `total` that no shard has, in batches that end at multiples of the batch size.

    So an interrupted run with the same batch size makes the same batches as an undisturbed one.
    """
    batches, first = [], 0
    for here in [*(shard.indices for shard in shards), range(total, total)]:
        while first < here.start:
            last = min(here.start, (first // batch_size + 1) * batch_size)
            batches.append(range(first, last))
            first = last
        first = max(first, here.stop)
    return batches


def assemble(
    shards: Sequence[Shard], names: Sequence[str], path: Path, commit: Callable[[Path], None] | None = None
) -> None:
    """Join the shards' arrays along the first axis into one npz, in constant memory.

    A shard may have any number of rows of an array, including none; the other axes agree.

    :param commit: see `files.write_atomically`.
    :raises DamagedError: a shard is damaged, lacks an array or has vanished.
    :raises InputError: a shard cannot be read, or the file cannot be written.
    """
    with write_atomically(path, commit) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            total = sum(len(shard.rows(name)) for shard in shards)
            with _open_array(shards[0]._file(name), name) as (_, shape, dtype):
                header = {"descr": dtype.str, "fortran_order": False, "shape": (total, *shape[1:])}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for shard in shards:
                    for block in shard.blocks(name):
                        member.write(block)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an npz file. DamagedError, also for errors of the block; InputError where it cannot be read."""
    damaged = partial(DamagedError, path=path)
    try:
        with reading_errors(path):
            file = open_regular(path)
    except FileNotFoundError:
        raise damaged(f"{path}: no longer there") from None
    with decoding(path, "damaged", damaged), file, zipfile.ZipFile(file) as archive:
        yield archive


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[BinaryIO, tuple[int, ...], np.dtype]]:
    """Open an array of an npz file: yield (file at its first byte, shape, dtype)."""
    with _open_archive(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, fortran_order, dtype = read_header(member)
        if fortran_order and len(shape) > 1:
            raise ValueError(f"{path}: {name} is in Fortran order")
        if dtype.hasobject:
            raise ValueError(f"{path}: {name} holds pickled objects")
        yield member, shape, dtype
