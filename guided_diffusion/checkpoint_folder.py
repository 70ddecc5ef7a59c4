"""The checkpoints of a training run in its folder: whole or known not to be.

A checkpoint is upstream's files modelNNNNNN.pt, optNNNNNN.pt and ema_RATE_NNNNNN.pt, and stateNNNNNN.json. The
last is written last and holds the others' sizes and SHA-256, so a checkpoint is there when its state is, and intact
when all of them are what it says.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint, logger
from .errors import InputError, first_line
from .files import hash_file, write_json

_NUMBERED = re.compile(r"(model|opt|ema_.+_|state)(\d{6,})\.(pt|json)")
_TEMPORARY = re.compile(r"\.(model|opt|ema_|state).*\.[0-9a-f]{8}\.tmp")


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
    """A run's folder. Only rank 0 uses it."""

    def __init__(self, directory: Path):
        self.directory = directory

    def numbers(self) -> list[int]:
        """Of the checkpoints that have a state, the newest first."""
        return sorted(self._numbers("state"), reverse=True)

    def _numbers(self, kind: str) -> list[int]:
        found = (_NUMBERED.fullmatch(path.name) for path in self.directory.glob(f"{kind}*"))
        return [int(match[2]) for match in found if match]

    def newest_state(self) -> dict[str, Any] | None:
        """What the newest checkpoint with a readable state keeps, be it intact or not."""
        for number in self.numbers():
            try:
                return self._read(number)["state"]
            except InputError:
                continue
        return None

    def newest_intact(self) -> Checkpoint | None:
        """The newest intact checkpoint; a warning for each newer one, which from now on counts as unfinished."""
        for path in self.directory.glob(".*.tmp"):
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()  # left by a process that was killed in the midst of writing it
        found, warnings = None, []
        for number in self.numbers():
            try:
                found = self._check(number)
                break
            except InputError as error:
                warnings.append(str(error))
                self._state_path(number).unlink()
        unfinished = set(self._numbers("model")) - set(self.numbers())
        newer = [number for number in unfinished if found is None or number > found.number]
        if newer and not warnings:
            name = f"{max(newer):06d}"
            warnings.append(f"{self.directory}/model{name}.pt: unfinished, it has no state{name}.json")
        instead = f"checkpoint {found.number:06d}" if found else "the run's beginning"
        for warning in warnings:
            logger.warn(f"{warning}; going on from {instead}")
        return found

    def save(self, number: int, objects: Mapping[str, Any], state: dict[str, Any]) -> None:
        """Write a checkpoint. InputError naming a file that cannot be written.

        :param objects: what goes into its files, by their names.
        :param state: JSON values to keep beside them.
        """
        self._make_way(number)
        files = {}
        for name, content in objects.items():
            path = self.directory / name
            try:
                checkpoint.save(content, path)
                files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
            except OSError as error:
                raise InputError(f"{path}: cannot be written: {first_line(error)}") from error
            logger.log(f"saved {path}")
        self._write_state(number, {"state": state, "files": files})

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep`; none where that is 0."""
        for number in self.numbers()[keep:] if keep else []:
            self._remove(number)

    def _make_way(self, number: int) -> None:
        """Take the number away from an intact checkpoint.

        At a run's end the number is the count of steps, on the way the step just trained, which is one less. Where
        a run goes on after its end, the end's checkpoint becomes one on the way before the number is used again.
        """
        if number not in self.numbers():
            return
        if number - 1 not in self.numbers():
            entry = self._read(number)
            for name in entry["files"]:
                _link(self.directory / name, self.directory / _renumbered(name, number - 1))
            files = {_renumbered(name, number - 1): expected for name, expected in entry["files"].items()}
            self._write_state(number - 1, entry | {"files": files})
        self._state_path(number).unlink()

    def _remove(self, number: int) -> None:
        self._state_path(number).unlink()  # first: without it the rest does not count
        for path in self.directory.iterdir():
            if (match := _NUMBERED.fullmatch(path.name)) and int(match[2]) == number:
                path.unlink()

    def _state_path(self, number: int) -> Path:
        return self.directory / f"state{number:06d}.json"

    def _write_state(self, number: int, entry: dict[str, Any]) -> None:
        path = self._state_path(number)
        try:
            write_json(path, entry | {"sha256": _digest(entry)})
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {first_line(error)}") from error

    def _read(self, number: int) -> dict[str, Any]:
        """A state file. InputError when it is damaged."""
        path = self._state_path(number)
        try:
            entry = json.loads(path.read_text())
            digest = entry.pop("sha256")
            if digest != _digest(entry):
                raise ValueError("its SHA-256 is not the one it states")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: damaged ({first_line(error)})") from error
        return entry

    def _check(self, number: int) -> Checkpoint:
        """A checkpoint. InputError naming the first of its files that is not as it was written."""
        entry = self._read(number)
        for name, expected in entry["files"].items():
            path = self.directory / name
            try:
                size = path.stat().st_size
                if size != expected["size"]:
                    raise InputError(f"{path}: damaged (found {size} bytes, expected {expected['size']})")
                digest = hash_file(path)
            except FileNotFoundError:
                raise InputError(f"{path}: missing") from None
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror}") from error
            if digest != expected["sha256"]:
                raise InputError(f"{path}: damaged (SHA-256 {digest[:12]}, expected {expected['sha256'][:12]})")
        return Checkpoint(self.directory, number, entry["state"])


def _link(path: Path, new: Path) -> None:
    """A second name for a file, or a copy where the file system knows no such thing."""
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, new)


def _renumbered(name: str, number: int) -> str:
    kind, _, suffix = _NUMBERED.fullmatch(name).groups()
    return f"{kind}{number:06d}.{suffix}"


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
