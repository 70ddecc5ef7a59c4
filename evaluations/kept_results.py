"""Results that took long to compute and cannot be written where they should be are written elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guided_diffusion.errors import InputError


def check_writable(flag: str, path: str) -> None:
    """Fail before the work rather than after it; directories are only made once there is a result."""
    target = Path(path).absolute()
    parent = next(ancestor for ancestor in target.parents if ancestor.exists())
    if target.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{flag} {path}: expected a file that can be written")


def write_or_keep(
    path: str | os.PathLike, write: Callable[[Path], None], keep: Callable[[Path], None] | None, what: str
) -> None:
    """Call ``write`` with a path; where that fails, ``keep`` with another one, and say which it was.

    The others are in the same folder (``keep`` may need less room), the working directory, and the one for temporary
    files. ``keep`` is None where there is nothing to keep.

    :param what: what is kept, for the line.
    :raises InputError: the file could not be written; with the place of what is kept, if it could be.
    """
    target = Path(path)
    try:
        return write(target)
    except InputError as error:
        folders = (target.absolute().parent, Path.cwd(), Path(tempfile.gettempdir())) if keep else ()
        for folder in dict.fromkeys(folders):
            other = folder / f"{target.stem}-kept-{os.getpid()}{target.suffix}"
            with suppress(InputError):
                keep(other)
                break
        else:
            raise
        raise InputError(f"{error}; {what} in {other}") from error
