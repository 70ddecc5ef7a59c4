"""Finished batches on disk, and the npz file they become."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .checkpoint import write_bytes_atomically
from .errors import InputError

MANIFEST = "run.json"


class PartStore:
    """Part files `parts/part-<index of first sample>.npz` of a run directory.

    Every file appears whole or not at all, so what is there is finished and never made again.
    """

    def __init__(self, directory: Path):
        self.directory = directory / "parts"

    def _path(self, first: int) -> Path:
        return self.directory / f"part-{first:09d}.npz"

    def has(self, first: int, count: int) -> bool:
        """Whether the part starting at sample `first` is there and holds `count` samples."""
        try:
            return self.rows(first, "arr_0") == count
        except (ValueError, OSError, KeyError, EOFError, AttributeError, zipfile.BadZipFile):
            return False

    def rows(self, first: int, name: str) -> int:
        """Length of a part's array along the first axis, from its header alone."""
        with zipfile.ZipFile(self._path(first)) as part, part.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
            shape, _, _ = read_header(member)
        return shape[0]

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Store one batch."""
        with write_bytes_atomically(self._path(first)) as file:
            np.savez(file, **arrays)

    def read(self, first: int, name: str) -> np.ndarray:
        """One array of a part."""
        with np.load(self._path(first), allow_pickle=False) as part:
            return part[name]

    def names(self, first: int) -> list[str]:
        """Names of a part's arrays."""
        with np.load(self._path(first), allow_pickle=False) as part:
            return list(part.files)

    def remove(self) -> None:
        """Delete all parts."""
        for path in self.directory.glob("part-*.npz"):
            path.unlink()
        self.directory.rmdir()


def assemble(store: PartStore, firsts: list[int], names: list[str], path: Path) -> None:
    """Join the parts' arrays along the first axis into one npz, holding one part at a time.

    A part may have any number of rows of an array, also none; the other axes agree.
    """
    with write_bytes_atomically(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                rows = sum(store.rows(first, name) for first in firsts)
                _stream(member, (store.read(first, name) for first in firsts), rows)


def _stream(member: BinaryIO, arrays: Iterator[np.ndarray], total: int) -> None:
    for index, array in enumerate(arrays):
        if index == 0:
            header = {"descr": array.dtype.str, "fortran_order": False, "shape": (total, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(member, header)
        member.write(np.ascontiguousarray(array).tobytes())


def check_manifest(directory: Path, flags: dict[str, Any], changeable: tuple[str, ...], write: bool) -> None:
    """Refuse to mix two runs in one directory; `write`: record this run's flags where there are none yet.

    InputError naming each flag that differs from the run found there, but for the `changeable` ones. A flag that
    one of the two lacks counts as "", the default of flags that came after the run.
    """
    path = directory / MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise InputError(f"{path}: not JSON, expected the flags of the run in this directory") from None
        if not isinstance(found, dict):
            raise InputError(f"{path}: found no JSON object, expected the flags of the run in this directory")
        clashes = [
            f"--{name} {flags.get(name)} (the run there has {found.get(name)})"
            for name in sorted({*flags, *found} - set(changeable))
            if flags.get(name, "") != found.get(name, "")
        ]
        if clashes:
            raise InputError(f"{directory}: holds samples of another run: {', '.join(clashes)}; use another --log_dir")
    if write:
        with write_bytes_atomically(path) as file:
            file.write(json.dumps(flags, indent=2).encode() + b"\n")
