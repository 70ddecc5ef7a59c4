"""Atomic writing: to a temporary name, to the disk, then renamed; temporary files of killed processes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from guided_diffusion.errors import InputError, first_line
from guided_diffusion.io.reading import exists, list_names, reason
from guided_diffusion.io.remote import blobfile, file_errors, is_remote
from guided_diffusion.system import processes

# .NAME.<machine>-<process>-<random>.tmp
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
_ABANDONED = 24 * 3600.0  # seconds without a change after which no process can still be writing a temporary file
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)  # a directory, on some systems


@contextmanager
def write_atomically(path: str | os.PathLike, commit: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends without an exception.

    The bytes go to a temporary name in the same directory and reach the disk before the rename, so that a reader (or a
    crash) sees the old file or the new one, never a part. Missing directories are made. A remote path is buffered in
    memory and uploaded at the end.

    :param commit: called with the temporary path when its contents are on disk, before the rename.
    :raises InputError: the file cannot be written; also for an ``OSError`` of the block, which therefore has to name
        what it cannot *read* by itself.
    """
    if is_remote(path):
        with _upload(os.fspath(path)) as buffer:
            yield buffer
        return
    target = Path(path)
    temporary = None
    try:
        target = target.resolve()  # through a symbolic link, so that the link itself survives
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(target)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if commit is not None:
            commit(temporary)
        os.replace(temporary, target)
        _sync_directory(target.parent)
    except _AlreadyThere:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a new temporary name beside a file, with the writing process in it for `remove_leftovers`."""
    return path.with_name(f".{path.name}.{processes.machine_digest()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


class _AlreadyThere(Exception):
    """A file that was to be made exclusively exists already."""


def create_exclusively(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically, to a file that must not exist yet; one of many processes succeeds.

    :raises FileExistsError: it exists. :raises InputError: it cannot be written.
    """

    def link(temporary: Path) -> None:
        try:
            os.link(temporary, path)  # fails where the name is taken; the rename that follows then changes nothing
        except FileExistsError:
            raise _AlreadyThere from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            try:  # a file system without links
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                raise _AlreadyThere from None

    with write_atomically(path, link) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")


def write_json(path: str | os.PathLike, value: Any, **options: Any) -> None:
    """Write ``value`` as JSON, atomically; ``options`` go to ``json.dumps``. Raises as ``write_atomically`` does."""
    with write_atomically(path) as file:
        file.write(json.dumps(value, indent=2, **options).encode() + b"\n")


def set_aside(path: Path) -> Path:
    """Rename a damaged file to NAME.damaged, so that it is kept but not used; return its new path.

    InputError if that fails.
    """
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while exists(aside):
        number, aside = number + 1, path.with_name(f"{path.name}.damaged-{number + 1}")
    try:
        os.rename(path, aside)
    except OSError as error:
        raise InputError(f"{path}: damaged, and cannot be renamed to {aside.name}: {reason(error)}") from error
    return aside


def remove_leftovers(directory: Path, name: str | None = None, owned: bool = False) -> None:
    """Remove the temporary files that killed processes left in a directory.

    :param name: only those of this file.
    :param owned: whether this process owns the directory. A file whose writer is on another machine counts as left
        behind when it has not changed for a minute, in a directory without an owner for a day.
    """
    with suppress(OSError, InputError):  # not worth an error
        for found in list_names(directory):
            match = _TEMPORARY.fullmatch(found)
            if match and name in (None, match["name"]) and _is_abandoned(directory / found, match, owned):
                (directory / found).unlink(missing_ok=True)


def _is_abandoned(path: Path, match: re.Match, owned: bool) -> bool:
    if match["machine"] == processes.machine_digest():
        return processes.start_time(int(match["pid"])) is None
    return time.time() - path.stat().st_mtime >= (60.0 if owned else _ABANDONED)


@contextmanager
def _upload(path: str) -> Iterator[BinaryIO]:
    buffer = io.BytesIO()
    yield buffer
    try:
        with blobfile().BlobFile(path, "wb") as remote:
            remote.write(buffer.getbuffer())
    except file_errors() as error:
        raise InputError(f"{path}: cannot be written: {first_line(error)}") from error


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, on file systems that can do this."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
