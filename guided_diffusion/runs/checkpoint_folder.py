"""The checkpoints of a training run in its folder, each known to be intact or not.

A checkpoint is upstream's files modelNNNNNN.pt, optNNNNNN.pt and ema_RATE_NNNNNN.pt, and stateNNNNNN.json. The
last is written last and holds the others' sizes and SHA-256, so a checkpoint is there when its state is, and intact
when all of them are what it says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guided_diffusion.errors import DamagedError, InputError
from guided_diffusion.io import checkpoint
from guided_diffusion.io.atomic import set_aside, write_atomically, write_json
from guided_diffusion.io.reading import hash_file, list_names, open_readable, read_json, reading_errors, reason
from guided_diffusion.runs import logger
from guided_diffusion.runs.run_directory import check_held

_NUMBERED = re.compile(r"(model|opt|ema_.+_|state|deleted)(\d{6,})\.(pt|json)")


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint.

    :param number: in the names of its files.
    :param state: what `CheckpointFolder.save` was given to keep.
    """

    directory: Path
    number: int
    state: dict[str, Any]

    @property
    def model(self) -> str:
        """Path of the weights."""
        return str(self.directory / f"model{self.number:06d}.pt")


class CheckpointFolder:
    """The checkpoints in a run's folder. Only rank 0 uses it."""

    def __init__(self, directory: Path):
        self.directory = directory

    def numbers(self) -> list[int]:
        """Return the numbers of the checkpoints that have a state, the newest first."""
        return sorted(self._numbers("state"), reverse=True)

    def _numbers(self, kind: str) -> list[int]:
        found = (_NUMBERED.fullmatch(name) for name in list_names(self.directory))
        return [int(match[2]) for match in found if match and match[1] == kind]

    def newest_state(self) -> dict[str, Any] | None:
        """Return the newest undamaged state, be its checkpoint intact or not; InputError if one cannot be read."""
        for number in self.numbers():
            with suppress(DamagedError):
                return self._read(number)["state"]
        return None

    def newest_whole(self) -> int | None:
        """Return the number of the newest checkpoint whose files are all there with their sizes.

        Where no checkpoint has a state, as in a folder of upstream's: that of the newest weights; None without any.
        """
        states = self.numbers()
        whole = (number for number in states if self.is_whole(number))
        return next(whole, None) if states else max(self._numbers("model"), default=None)

    def is_whole(self, number: int) -> bool:
        """Return whether a checkpoint has a state, and all its files are there with their sizes."""
        with suppress(DamagedError, FileNotFoundError):
            files = self._read(number)["files"]
            return all((self.directory / name).stat().st_size == entry["size"] for name, entry in files.items())
        return False

    def newest_intact(self) -> Checkpoint | None:
        """Return the newest intact checkpoint; newer, damaged ones are renamed to *.damaged with a warning.

        InputError, and nothing is changed, where one cannot be read: it may be intact.
        """
        found, damaged = None, {}
        for number in self.numbers():
            try:
                found = self._check(number)
                break
            except DamagedError as error:
                damaged[number] = error
        warnings = [f"{error}; kept as *.damaged" for error in damaged.values()]
        for number in damaged:
            self._set_aside(number)
        unfinished = set(self._numbers("model")) - set(self.numbers())
        newer = [number for number in unfinished if found is None or number > found.number]
        if newer and not warnings:
            name = f"{max(newer):06d}"
            warnings.append(f"{self.directory}/model{name}.pt: unfinished, it has no state{name}.json")
        instead = f"checkpoint {found.number:06d}" if found else "the run's beginning"
        for warning in warnings:
            logger.warning(f"{warning}; resuming from {instead}")
        return found

    def save(self, number: int, objects: Mapping[str, Any], state: dict[str, Any]) -> None:
        """Write a checkpoint. InputError naming a file that cannot be written.

        :param objects: what goes into its files, by their names.
        :param state: JSON values to keep beside them.
        """
        check_held(self.directory)
        self._make_way(number)
        files = {}
        for name, content in objects.items():
            path = self.directory / name
            checkpoint.save(content, path)
            with reading_errors(path):
                files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
            logger.log(f"saved {path}")
        self._write_state(number, {"state": state, "files": files})

    def prune(self, keep: int, besides: Collection[int] = ()) -> None:
        """Delete all checkpoints but the newest `keep` and those with the numbers `besides`; none where keep is 0.

        A state is first renamed to deletedNNNNNN.json: the checkpoint no longer counts, and a call after an interrupted
        one finds its remaining files.
        """
        surplus = self.numbers()[keep:] if keep else []
        for number in (number for number in surplus if number not in besides):
            with _deleting(number):
                self._path("state", number).rename(self._path("deleted", number))
        for number in self._numbers("deleted"):
            with _deleting(number):
                for path in self._files(number):
                    path.unlink(missing_ok=True)

    def _make_way(self, number: int) -> None:
        """Renumber an intact checkpoint that has this number.

        A checkpoint at a run's end has the count of steps for its number, an earlier one the step just trained, which
        is one less. When a run is resumed after its end, the number of its last checkpoint is used again.
        """
        if number in self.numbers() and not self._is_intact(number - 1):
            self._set_aside(number - 1)
            entry = self._read(number)
            for name in entry["files"]:
                path, copy = self.directory / name, self.directory / _renumbered(name, number - 1)
                with open_readable(str(path), path) as old, write_atomically(copy) as new:
                    shutil.copyfileobj(old, new)
            files = {_renumbered(name, number - 1): expected for name, expected in entry["files"].items()}
            self._write_state(number - 1, entry | {"files": files})
        for path in (self._path("state", number), self._path("deleted", number)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"{path}: cannot be removed: {reason(error)}") from error

    def _is_intact(self, number: int) -> bool:
        with suppress(DamagedError):  # or not there
            self._check(number)
            return True
        return False

    def _set_aside(self, number: int) -> None:
        for path in self._files(number):
            set_aside(path)

    def _files(self, number: int) -> list[Path]:
        """Return a checkpoint's files, the state last: without it the others would belong to nothing."""
        found = {name: _NUMBERED.fullmatch(name) for name in list_names(self.directory)}
        names = [name for name, match in found.items() if match and int(match[2]) == number]
        return [self.directory / name for name in sorted(names, key=lambda name: name.endswith(".json"))]

    def _path(self, kind: str, number: int) -> Path:
        return self.directory / f"{kind}{number:06d}.json"

    def _write_state(self, number: int, entry: dict[str, Any]) -> None:
        write_json(self._path("state", number), entry | {"sha256": _digest(entry)})

    def _read(self, number: int) -> dict[str, Any]:
        """Return a state file's contents. DamagedError when it is damaged, InputError when it cannot be read."""
        path = self._path("state", number)
        try:
            entry = read_json(path, "a checkpoint's state")
        except FileNotFoundError:
            raise DamagedError(f"{path}: missing") from None
        if entry.pop("sha256", None) != _digest(entry):
            raise DamagedError(f"{path}: damaged (its SHA-256 is not the one it states)")
        return entry

    def _check(self, number: int) -> Checkpoint:
        """Return a checkpoint. DamagedError names its first damaged file, InputError one that cannot be read."""
        entry = self._read(number)
        for name, expected in entry["files"].items():
            path = self.directory / name
            try:
                with reading_errors(path):
                    size = path.stat().st_size
                if size != expected["size"]:
                    raise DamagedError(f"{path}: damaged (found {size} bytes, expected {expected['size']})")
                digest = hash_file(path)
            except FileNotFoundError:
                raise DamagedError(f"{path}: missing") from None
            if digest != expected["sha256"]:
                raise DamagedError(f"{path}: damaged (SHA-256 {digest[:12]}, expected {expected['sha256'][:12]})")
        return Checkpoint(self.directory, number, entry["state"])


@contextmanager
def _deleting(number: int) -> Iterator[None]:
    """Turn a failure of the block into a warning: the checkpoints that are kept are intact."""
    try:
        yield
    except OSError as error:
        logger.warning(f"checkpoint {number:06d} cannot be deleted, tried again later: {error}")


def _renumbered(name: str, number: int) -> str:
    kind, _, suffix = _NUMBERED.fullmatch(name).groups()
    return f"{kind}{number:06d}.{suffix}"


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
