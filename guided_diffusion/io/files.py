"""Local files: written whole or not at all, read only if they are regular, and their digests."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from guided_diffusion.errors import DamagedError, InputError, first_line
from guided_diffusion.system import processes

# .NAME.<machine>-<process>-<random>.tmp; earlier versions wrote .NAME.<random>.tmp and .status.json.<process>.tmp
_TEMPORARY = re.compile(
    r"\.(?P<name>.+?)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}\.tmp"
    r"|\.(?P<old>(samples_|part-|model|opt|ema_|state|run|config|progress|trace|nonfinite).+)\.[0-9a-f]{8}\.tmp"
    r"|\.status\.json\.\d+\.tmp"
)
_ABANDONED = 24 * 3600.0  # seconds without a change after which nobody can be writing a temporary file any more
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF)  # a directory, on some systems
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is an address such as gs://bucket/name."""
    return "://" in os.fspath(path)


def join(folder: str | os.PathLike, name: str) -> str:
    """Return the path of a file in a folder, local or remote."""
    folder = os.fspath(folder)
    return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def beside(path: str | os.PathLike, name: str) -> str:
    """Return the path of a file in the same folder as another, local or remote."""
    path = os.fspath(path)
    return join(path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path), name)


def blobfile() -> ModuleType:
    """Return the library for remote paths, which alone need it. ``InputError`` where it is not installed."""
    try:
        import blobfile
    except ImportError as error:
        raise InputError("remote paths need blobfile: pip install blobfile") from error
    return blobfile


def file_errors() -> tuple[type[Exception], ...]:
    """Return what opening, listing and writing files raises, local or remote."""
    loaded = sys.modules.get("blobfile")
    return (OSError, loaded.Error) if loaded else (OSError,)


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
    """Return a new name beside a file that says who writes it, so that `remove_leftovers` knows what is left over."""
    return path.with_name(f".{path.name}.{processes.machine_digest()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


class _AlreadyThere(Exception):
    """A file that was to be made exclusively exists."""


def create_exclusively(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to a file that must not exist yet, whole and durable, also among many processes.

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


def read_json(path: str | os.PathLike, expected: str = "a JSON object") -> dict[str, Any]:
    """Return the JSON object in a local file.

    :raises FileNotFoundError: there is none.
    :raises DamagedError: the file can be read but is not ``expected``.
    :raises InputError: it cannot be read, or is no regular file.
    """
    with reading(path), open_regular(path) as file:
        data = file.read()
    return parse_json(data, path, expected)


def parse_json(data: bytes, name: str | os.PathLike, expected: str = "a JSON object", kind: type = dict) -> Any:
    """Return the JSON value that some bytes hold; DamagedError, naming their file, where it is not of that kind."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name}: expected {expected}, found no JSON ({first_line(error)})") from error
    if not isinstance(found, kind):
        raise DamagedError(f"{name}: expected {expected}, found a {type(found).__name__}")
    return found


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``InputError`` that says ``path`` cannot be read.

    "No such file" stays a ``FileNotFoundError``. What cannot be read may well be intact: it is never damage.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


@contextmanager
def decoding(name: object, problem: str, kind: Callable[[str], InputError] = DamagedError) -> Iterator[None]:
    """Turn whatever the block raises into a ``kind`` that says ``name: problem: why``.

    Decoders raise nearly everything on damaged files, and zipfile hides a failing disk behind "not a zip file": what
    the system says of a file that it cannot read stays apart, as in ``reading``.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:  # that of a file which claims too much, or of this machine: no damage
        raise InputError(f"{name}: {problem}: {first_line(error)}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):  # those are decoders' own
                raise InputError(f"{name}: cannot be read: {reason(cause)}") from error
            cause = cause.__cause__ or cause.__context__
        raise kind(f"{name}: {problem}: {first_line(error)}") from error


def open_regular(path: str | os.PathLike, name: str = "") -> BinaryIO:
    """Open a local file for reading bytes, without waiting where it is a named pipe.

    :param name: what an error calls it, if not by its path.
    :raises InputError: it is anything but a regular file. ``OSError`` as ``open`` does.
    """
    opener = lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # noqa: E731
    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except IsADirectoryError:
        mode = stat.S_IFDIR
    except ValueError as error:  # a byte of zero in the path
        raise InputError(f"{name or path}: cannot be read: {error}") from error
    else:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode):
            return file
        file.close()
    found = _KINDS.get(stat.S_IFMT(mode), "something else")
    raise InputError(f"{name or path}: found {found}, expected a regular file")


def open_readable(name: str, path: str | os.PathLike) -> BinaryIO:
    """Open a local file as ``open_regular`` does, with an ``InputError`` for whatever keeps it from being read.

    :param name: what the line calls it, perhaps with its flag.
    """
    try:
        with reading(name):
            return open_regular(path, name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error


def check_readable(name: str, path: str | os.PathLike) -> None:
    """Raise the ``InputError`` that opening a local file would, now rather than later."""
    open_readable(name, path).close()


def exists(path: str | os.PathLike) -> bool:
    """Return whether there is a file or folder; InputError, rather than "no", where nobody can tell."""
    with suppress(FileNotFoundError, NotADirectoryError), reading(path):
        os.stat(path)
        return True
    return False


def list_names(directory: str | os.PathLike) -> list[str]:
    """Return the sorted names in a directory; none where there is no directory. InputError where it cannot be read."""
    with suppress(FileNotFoundError, NotADirectoryError), reading(directory):
        return sorted(os.listdir(directory))
    return []


def hash_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return a file's digest in hexadecimal; against damage and mix-ups, so MD5 is allowed everywhere.

    :raises FileNotFoundError: there is no such file. :raises InputError: it cannot be read, or is not regular.
    """
    with reading(path), open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that it is neither used nor lost; return its new path. InputError if that fails."""
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
    :param owned: nobody else has any business there but trying to own it. Otherwise a file whose writer is not a
        process of this machine is only a left-over when it has not changed for a day.
    """
    with suppress(OSError, InputError):  # they are a nuisance, not a fault
        for found in list_names(directory):
            match = _TEMPORARY.fullmatch(found)
            wanted = match and name in (None, match["name"] or match["old"])
            if wanted and _is_abandoned(directory / found, match, owned):
                (directory / found).unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """Return why an operation failed, in the system's words."""
    return error.strerror or first_line(error)


def _is_abandoned(path: Path, match: re.Match, owned: bool) -> bool:
    if match["machine"] == processes.machine_digest():
        return processes.start_time(int(match["pid"])) is None
    patience = _ABANDONED if not owned else 60.0 if match["machine"] else 0.0
    return time.time() - path.stat().st_mtime >= patience


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
    """Make a rename durable; file systems that cannot do this are left as they are."""
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
