"""Results that took long to compute and cannot be written where they should be are written elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guided_diffusion.errors import InputError


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
