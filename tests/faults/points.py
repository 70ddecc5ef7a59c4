"""A process's operations on the files of one folder: recorded, counted, and one of them disturbed.

    watch(folder, trace, plan)     # in the process, before its program runs

From then on Python's ways to the file system (`open`, and what `os` has) report each operation on a path in the folder,
or on a descriptor opened there, to a `Watch`. Every one is a `Point`: a place where the process can be killed, or
where the disk can fail. Without a plan all points go to the trace, a line each; with one only the point that was hit.
Descriptors that C code uses by itself are not seen, so copying by `sendfile` is switched off.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

READ, WRITE = "read", "write"
KILL, KILL_AFTER = "kill", "kill-after"
ACTIONS = (KILL, KILL_AFTER, "EIO", "ESTALE", "ENOSPC")
RENAMES = ("rename", "replace", "link")
ALLOCATING = ("open", "write", "fsync", "truncate", "mkdir", "symlink", *RENAMES)  # what a full disk can refuse

# Functions of `os` by what they do and how they name the file: by a path or descriptor, or by two paths.
_ONE_FILE = {
    READ: ("stat", "lstat", "listdir", "scandir", "readlink", "read", "pread", "fstat"),
    WRITE: ("write", "pwrite", "fsync", "fdatasync", "unlink", "remove", "mkdir", "rmdir", "utime", "truncate",
            "ftruncate", "chmod"),
}  # fmt: skip
_TWO_FILES = ("rename", "replace", "link", "symlink")
_ALIASES = {"remove": "unlink", "fdatasync": "fsync", "ftruncate": "truncate", "pwrite": "write", "pread": "read"}
_REAL = {name: getattr(os, name) for name in (*_ONE_FILE[READ], *_ONE_FILE[WRITE], *_TWO_FILES, "open", "close")}
_REAL_OPEN = io.open
# What differs from run to run in a file's name: hashes, random digits, process ids of temporary files.
_CHANGING = re.compile(r"[0-9a-f]{8}-\d+-[0-9a-f]{8}|(?<=\.)\d+(?=\.tmp)|(?<![0-9a-f])[0-9a-f]{8,}(?![0-9a-f])")


@dataclass(frozen=True)
class Point:
    """One operation of a run, named so that the next run of the same command has it again.

    :param kind: READ or WRITE; `open` is what it opens for.
    :param path: relative to the folder, with * for what differs from run to run.
    :param number: of this call on this path, from 1.
    """

    kind: str
    call: str
    path: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.call}:{self.path}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """Read what `str` wrote."""
        kind, call, rest = text.split(":", 2)
        path, _, number = rest.rpartition(":")
        return cls(kind, call, path, int(number))


@dataclass(frozen=True)
class Plan:
    """The action to perform, and the point at which.

    :param action: "kill" or "kill-after": SIGKILL to the process group before or after the operation, as when a machine
        goes down; else the name of an error, which the operation raises instead of being done, once.
    """

    action: str
    point: Point


class Watch:
    """Records the operations of this process in a folder."""

    def __init__(self, folder: Path, trace: Path, plan: Plan | None):
        self.folder, self.plan = os.path.abspath(folder), plan
        self.active = True
        self._descriptors: dict[int, str] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock, self._thread = threading.Lock(), threading.local()
        self._trace = _REAL["open"](trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def name(self, file: Any, directory: int | None = None) -> str | None:
        """Return a file's path in the folder; None for files that are elsewhere."""
        if isinstance(file, int):
            return self._descriptors.get(file)
        path = os.fsdecode(file)
        if directory is not None and not os.path.isabs(path):
            inside = self._descriptors.get(directory)
            return None if inside is None else os.path.normpath(os.path.join(inside, path))
        path = os.path.abspath(path)
        if path != self.folder and not path.startswith(self.folder + os.sep):
            return None
        return _CHANGING.sub("*", os.path.relpath(path, self.folder))

    def keep(self, descriptor: int, name: str) -> None:
        """Remember the file of a descriptor."""
        self._descriptors[descriptor] = name

    def forget(self, descriptor: int) -> None:
        """Forget a descriptor that is being closed."""
        self._descriptors.pop(descriptor, None)

    def act(self, kind: str, call: str, name: str, file: Any, do: Callable[[], Any]) -> Any:
        """Do an operation, or the planned action in its place."""
        if not self.active or getattr(self._thread, "busy", False):
            return do()
        with self._lock:
            self._counts[kind, call, name] += 1
            point = Point(kind, call, name, self._counts[kind, call, name])
        hit = self.plan is not None and point == self.plan.point
        if hit:
            self._note(f"{point}\n")
            if self.plan.action == KILL:
                os.killpg(0, signal.SIGKILL)
            elif self.plan.action != KILL_AFTER:
                number = getattr(errno, self.plan.action)
                raise OSError(number, os.strerror(number), *([] if isinstance(file, int) else [os.fspath(file)]))
        self._thread.busy = True  # `open` may call `os.open`
        result = None
        try:
            result = do()
        finally:
            self._thread.busy = False
            if self.plan is None:
                self._note(f"{point}\t{result if type(result) is int else ''}\n")
            if hit:  # also after a call that failed, such as a link to a name that is taken
                os.killpg(0, signal.SIGKILL)
        return result

    def _note(self, line: str) -> None:
        _REAL["write"](self._trace, line.encode())


class _File(io.FileIO):
    """An unbuffered file of the folder; buffered reads and writes end up here as well."""

    def __init__(self, watch: Watch, name: str, *arguments: Any):
        self._watch, self._where = watch, name
        super().__init__(*arguments)
        watch.keep(self.fileno(), name)

    def read(self, size: int = -1) -> bytes | None:
        return self._act(READ, partial(super().read, size))

    def readall(self) -> bytes | None:
        return self._act(READ, super().readall)

    def readinto(self, buffer: Any) -> int | None:
        return self._act(READ, partial(super().readinto, buffer))

    def write(self, data: Any) -> int | None:
        return self._act(WRITE, partial(super().write, data))

    def truncate(self, size: int | None = None) -> int:
        return self._watch.act(WRITE, "truncate", self._where, self.fileno(), partial(super().truncate, size))

    def close(self) -> None:
        if not self.closed:
            self._watch.forget(self.fileno())
        super().close()

    def _act(self, call: str, do: Callable[[], Any]) -> Any:
        return self._watch.act(call, call, self._where, self.fileno(), do)


_current: Watch | None = None


def watch(folder: Path, trace: Path, plan: Plan | None = None) -> Watch:
    """Watch this process from now on until it ends."""
    global _current
    found = _current = Watch(folder, trace, plan)
    builtins.open = io.open = partial(_open, found)
    os.open, os.close = partial(_open_descriptor, found), partial(_close, found)
    for kind, names in _ONE_FILE.items():
        for name in names:
            setattr(os, name, partial(_one_file, found, kind, name))
    for name in _TWO_FILES:
        setattr(os, name, partial(_two_files, found, name))
    shutil._USE_CP_SENDFILE = False
    return found


def suspend() -> None:
    """Stop watching, in a process forked from a watched one."""
    if _current is not None:
        _current.active = False


def read_trace(path: Path) -> list[tuple[Point, int | None]]:
    """Return the points of a trace, each with the whole number that its operation returned (bytes, mostly)."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        point, _, number = line.partition("\t")
        found.append((Point.parse(point), int(number) if number else None))
    return found


def _open(
    watch: Watch, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None
):
    """Open as `io.open` does, but watch the file if it is in the folder."""
    name = watch.name(file) if watch.active else None
    if name is None:
        return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    if "b" not in mode:
        encoding = io.text_encoding(encoding)
    writing = bool(set(mode) & set("wax+"))
    raw_mode = "".join(letter for letter in mode if letter not in "bt")
    arguments = (file, raw_mode, closefd, opener)
    raw = watch.act(WRITE if writing else READ, "open", name, file, lambda: _File(watch, name, *arguments))
    if buffering == 0:
        return raw
    size = io.DEFAULT_BUFFER_SIZE if buffering in (-1, 1) else buffering
    kind = io.BufferedRandom if "+" in mode else io.BufferedWriter if writing else io.BufferedReader
    buffered = kind(raw, size)
    if "b" in mode:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
    text.mode = mode
    return text


def _open_descriptor(watch: Watch, path, flags, mode=0o777, *, dir_fd=None) -> int:
    name = watch.name(path, dir_fd) if watch.active else None
    do = partial(_REAL["open"], path, flags, mode, dir_fd=dir_fd)
    if name is None:
        return do()
    writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    descriptor = watch.act(WRITE if writing else READ, "open", name, path, do)
    watch.keep(descriptor, name)
    return descriptor


def _close(watch: Watch, descriptor: int) -> None:
    watch.forget(descriptor)
    _REAL["close"](descriptor)


def _one_file(watch: Watch, kind: str, call: str, file=".", *rest, **options):
    do = partial(_REAL[call], file, *rest, **options)
    name = watch.name(file, options.get("dir_fd")) if watch.active and file is not None else None
    return do() if name is None else watch.act(kind, _ALIASES.get(call, call), name, file, do)


def _two_files(watch: Watch, call: str, source, target, *rest, **options):
    do = partial(_REAL[call], source, target, *rest, **options)
    name = (watch.name(target) or watch.name(source)) if watch.active else None
    return do() if name is None else watch.act(WRITE, call, name, target, do)
