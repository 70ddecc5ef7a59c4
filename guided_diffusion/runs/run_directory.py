"""The directory of a run: the one process that owns it, and its manifest `run.json`.

The owner makes `owner.json` exclusively, touches it every ten seconds and removes it at the end. A crash leaves the
file behind: the directory is free at once where its process ran on this machine and has ended, else after a minute
without a touch, by the clock of the file system. Links and times are all that this needs, so it works on NFS.
"""

from __future__ import annotations

import os
import platform
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from guided_diffusion.errors import DamagedError, InputError
from guided_diffusion.io.atomic import create_exclusively, remove_leftovers, temporary_path, write_json
from guided_diffusion.io.reading import hash_file, open_regular, parse_json, read_json, reading_errors
from guided_diffusion.runs import logger
from guided_diffusion.system import processes

OWNER, MANIFEST = "owner.json", "run.json"
TOUCH_SECONDS, SILENT_SECONDS = 10.0, 60.0
_NOTES = ("sha256", "versions", "results", "commands")  # entries of run.json that are no flags


@dataclass(frozen=True)
class Owner:
    """A process that owns a directory.

    :param machine: see `processes.machine`; started: see `processes.start_time`.
    """

    host: str
    pid: int
    machine: str
    started: str | None
    since: str

    @classmethod
    def here(cls) -> Owner:
        pid, since = os.getpid(), datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(socket.gethostname(), pid, processes.machine(), processes.start_time(pid), since)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


class _Claim:
    """This process's ownership of a directory, with the thread that touches the owner file."""

    def __init__(self, directory: Path, owner: Owner, lost: Callable[[str], None]):
        self.path, self.owner, self._lost = directory / OWNER, owner, lost
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Return whether the owner file is still this process's. OSError where it cannot be read."""
        for wait in (0.5, 0.0):  # another process may have renamed it for a moment, see `_free`
            with suppress(FileNotFoundError, NotADirectoryError):
                if _look(self.path)[0] == self.owner:
                    return True
            time.sleep(wait)
        return False

    def release(self) -> None:
        self._released.set()
        with suppress(OSError, InputError):
            if self.owner.pid == os.getpid() and self.is_held():  # not in a forked child
                self.path.unlink(missing_ok=True)

    def _touch(self) -> None:
        while not self._released.wait(TOUCH_SECONDS):
            try:
                if not self.is_held():
                    return None if self._released.is_set() else self._lost(_lost_line(self.path.parent))
                os.utime(self.path)
            except (OSError, InputError):
                continue  # an outage says nothing about who owns it


_claims: dict[Path, _Claim] = {}


def claim(directory: str | os.PathLike, lost: Callable[[str], None]) -> None:
    """Make this process the owner of a run's directory until `release`; remove temporary files of killed processes.

    Waits up to a minute where only time can tell whether an owner on another machine is alive.

    :param lost: called from a thread, with one line, when another process has taken the directory over meanwhile
        (this one was frozen for long) or it was moved; has to end this process.
    :raises InputError: another process owns it, or it cannot be made or written.
    """
    directory = Path(directory).resolve()
    if directory in _claims:
        return
    owner = Owner.here()
    while True:
        try:
            create_exclusively(directory / OWNER, asdict(owner))
            break
        except FileExistsError:
            with reading_errors(directory / OWNER):
                _free(directory / OWNER)
    _claims[directory] = _Claim(directory, owner, lost)
    remove_leftovers(directory, owned=True)


def check_held(directory: str | os.PathLike) -> None:
    """Raise InputError if this process has claimed a directory and lost it. Called before results are written."""
    found = _claims.get(Path(directory).resolve())
    with reading_errors(directory):
        if found is not None and not found.is_held():
            raise InputError(_lost_line(found.path.parent))


def release() -> None:
    """Give up all directories that this process owns."""
    while _claims:
        _claims.popitem()[1].release()


def _lost_line(directory: Path) -> str:
    return f"{directory}: no longer this run's: it was moved, or another process has taken it over; see {OWNER} there"


def _free(path: Path) -> None:
    """Remove the owner file of a process that has ended, if it is still there; InputError if the process runs."""
    with suppress(FileNotFoundError):
        found, signature = _look(path)
        if found is not None and found.machine == processes.machine():
            started = processes.start_time(found.pid)
            lives = started is not None and (started == found.started or "" in (started, found.started))
            if lives and found.pid != os.getpid():  # an earlier claim of this very process may have left it
                raise InputError(_in_use(path, str(found)))
        else:
            silent = _wait_for_silence(path, signature, found)
            line = f"{path.parent}: taking over from {found or 'an unknown process'}, silent for {silent:.0f} s"
            sys.stderr.write(f"{line}\n")  # there is no log yet
        aside = temporary_path(path)
        os.rename(path, aside)
        if _look(aside)[0] != found:  # another process was quicker, and lives: give it back
            try:
                os.link(aside, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.rename(aside, path)
        aside.unlink(missing_ok=True)


def _wait_for_silence(path: Path, signature: tuple, found: Owner | None) -> float:
    """Return for how many seconds an owner has not touched its file, at least a minute; InputError once it does."""
    clock = temporary_path(path)

    def silence() -> float:
        clock.touch()
        return clock.stat().st_mtime - signature[0]

    try:
        if (left := SILENT_SECONDS - silence()) >= 0:
            who = found or "an unknown process"
            sys.stderr.write(f"{path.parent}: owned by {who}; waiting {left:.0f} s to see whether it is alive\n")
        while (silent := silence()) <= SILENT_SECONDS:
            time.sleep(1)
            if _look(path)[1] != signature:
                raise InputError(_in_use(path, str(found or "another process")))
        return silent
    finally:
        clock.unlink(missing_ok=True)


def _look(path: Path) -> tuple[Owner | None, tuple]:
    """Return the owner that a file names, None where the file is malformed, and what changes when it is touched.

    Opening makes NFS ask the server, which a stat alone would not.
    """
    with open_regular(path) as file:
        status, data = os.fstat(file.fileno()), file.read()
    with suppress(DamagedError, TypeError):
        found = Owner(**parse_json(data, path))
        if type(found.pid) is int:
            return found, (status.st_mtime, data)
    return None, (status.st_mtime, data)


def _in_use(path: Path, owner: str) -> str:
    return f"{path.parent}: in use by {owner}; wait for it, stop it, or use another --log_dir or --out"


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the contents of a directory's run.json, empty where there is no run. InputError if it is unreadable.

    Besides flags it has `sha256` (of the files that flags name, by flag), `versions`, `results` (names of finished
    files by the sha256 that they have had), and `commands` (the command lines that have worked on the run).
    """
    with suppress(FileNotFoundError):
        found = read_json(directory / MANIFEST, "the flags of the run in this directory as a JSON object")
        if "extras_sha256" in found:  # as earlier versions noted a trace
            found["results"] = {found.pop("extras_sha256"): None} | found.get("results", {})
        return found
    return {}


def clashes(
    flags: Mapping[str, Any],
    found: Mapping[str, Any],
    changeable: Iterable[str],
    defaults: Mapping[str, Any],
    facts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the differences that make two runs different ones, by flag: each as a clause for an error line.

    :param flags, found: the flags of the two. A flag that one of them lacks, being newer, has its default there.
    :param changeable: flags that may differ.
    :param defaults: of the flags.
    :param facts: names, in the error line, of entries that are no flags.
    """
    pairs = {
        name: [values.get(name, defaults.get(name)) for values in (flags, found)]
        for name in sorted({*flags, *found} - {*changeable})
    }
    return {
        name: f"{facts.get(name, f'--{name}')} {ours} (the run there has {theirs})"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs and {repr(ours), repr(theirs)} != {"''", "None"}
    }


def check_manifest(
    directory: Path,
    flags: dict[str, Any],
    changeable: Sequence[str],
    sha256: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    updated: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuse to mix two runs in one directory, and record this one.

    Other library versions are listed and logged.

    :param sha256: digests of the files that flags name, by flag; their paths may differ.
    :param updated: converts flags that an earlier version wrote to the form of `flags`.
    :raises InputError: naming each flag that differs from the run found there, see `clashes`, and each file whose
        contents differ.
    """
    found, sha256, versions = updated(read_manifest(directory)), dict(sha256 or {}), dict(versions or {})
    known = {name: digest for name, digest in found.get("sha256", {}).items() if name in sha256}
    differences = list(clashes(flags, found, {*changeable, *_NOTES, *known}, defaults).values()) if found else []
    differences += [
        f"--{name} {flags[name]} has other contents than {found.get(name)} when the run there began "
        f"(sha256 {sha256[name][:12]}..., then {digest[:12]}...)"
        for name, digest in known.items()
        if sha256[name] != digest
    ]
    if differences:
        raise InputError(f"{directory}: holds samples of another run: {', '.join(differences)}; use another --log_dir")
    earlier = found.get("versions", [])
    if versions and earlier and versions not in earlier:
        before = earlier[-1]
        told = [f"{name} {before.get(name)} -> {v}" for name, v in versions.items() if before.get(name) != v]
        logger.log(f"resuming with other versions ({', '.join(told)}): samples may differ by rounding")
    command = " ".join([*sys.argv[:1], *map(shlex.quote, sys.argv[1:])])  # the first may be two words, `ed-dpm sample`
    notes = {
        "sha256": found.get("sha256", {}) | sha256,
        "versions": earlier + [versions] * (bool(versions) and versions not in earlier),
        "commands": found.get("commands", []) + [command] * (command not in found.get("commands", [])),
        "results": found.get("results"),
    }
    manifest = flags | {name: value for name, value in notes.items() if value}
    if found:
        write_json(directory / MANIFEST, manifest)
        return
    try:
        create_exclusively(directory / MANIFEST, manifest)
    except FileExistsError:  # another run has begun here just now
        if not read_manifest(directory):
            raise InputError(f"{directory / MANIFEST}: holds nothing, expected the flags of a run; delete it") from None
        check_manifest(directory, flags, changeable, sha256, versions, updated, defaults)


def record_result(directory: Path, path: Path, name: str) -> None:
    """Write to run.json the digest of a file that is about to become the result `name`."""
    found = read_manifest(directory)
    write_json(directory / MANIFEST, found | {"results": found.get("results", {}) | {hash_file(path): name}})


def versions() -> dict[str, str]:
    """Return the versions that rounding depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "device": device}
