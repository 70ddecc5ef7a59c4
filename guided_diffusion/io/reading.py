"""Reading local files: regular ones only, with errors that name them; JSON, digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from guided_diffusion.errors import DamagedError, InputError, first_line

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def read_json(path: str | os.PathLike, expected: str = "a JSON object", kind: type = dict) -> Any:
    """Return the JSON object, or value of another kind, in a local file.

    :raises FileNotFoundError: there is none.
    :raises DamagedError: the file can be read but is not ``expected``.
    :raises InputError: it cannot be read, or is no regular file.
    """
    with reading_errors(path), open_regular(path) as file:
        data = file.read()
    return parse_json(data, path, expected, kind)


def parse_json(data: bytes, name: str | os.PathLike, expected: str = "a JSON object", kind: type = dict) -> Any:
    """Return the JSON value in some bytes; DamagedError, naming their file, where it is not of that kind."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name}: expected {expected}, found no JSON ({first_line(error)})") from error
    if not isinstance(found, kind):
        raise DamagedError(f"{name}: expected {expected}, found a {type(found).__name__}")
    return found


@contextmanager
def reading_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``InputError`` that says ``path`` cannot be read.

    "No such file" stays a ``FileNotFoundError``. A file that cannot be read may be intact, so this is no damage.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


@contextmanager
def decoding(name: object, problem: str, kind: Callable[[str], InputError] = DamagedError) -> Iterator[None]:
    """Turn any exception of the block into a ``kind`` that says ``name: problem: why``.

    Decoders raise nearly everything on damaged files, and zipfile reports a failing disk as "not a zip file". Errors of
    the system while reading become those of ``reading_errors``.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:  # the file claims too much, or this machine has too little: no damage
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

    :param name: of the file in an error, unless that is its path.
    :raises InputError: it is not a regular file. ``OSError`` as ``open`` does.
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
    """Open a local file as ``open_regular`` does, with an ``InputError`` where it cannot be read.

    :param name: of the file in an error, perhaps with its flag.
    """
    try:
        with reading_errors(name):
            return open_regular(path, name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error


def check_readable(name: str, path: str | os.PathLike) -> None:
    """Raise the ``InputError`` that opening a local file would raise."""
    open_readable(name, path).close()


def exists(path: str | os.PathLike) -> bool:
    """Return whether there is a file or folder; InputError where the system cannot tell."""
    with suppress(FileNotFoundError, NotADirectoryError), reading_errors(path):
        os.stat(path)
        return True
    return False


def list_names(directory: str | os.PathLike) -> list[str]:
    """Return the sorted names in a directory; none where there is no directory. InputError where it cannot be read."""
    with suppress(FileNotFoundError, NotADirectoryError), reading_errors(directory):
        return sorted(os.listdir(directory))
    return []


def hash_file(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """Return a file's digest in hexadecimal. It is for damage, not for security, so MD5 is allowed everywhere.

    :raises FileNotFoundError: there is no such file. :raises InputError: it cannot be read, or is not regular.
    """
    with reading_errors(path), open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def reason(error: OSError) -> str:
    """Return the system's reason why an operation failed."""
    return error.strerror or first_line(error)
