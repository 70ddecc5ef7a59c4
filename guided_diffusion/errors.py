"""Exceptions for users, and helpers for their messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 4000  # characters of a line; a path or a value in it may have any number


class InputError(Exception):
    """A wrong flag, file or environment variable that the user gave.

    ``str(error)`` is the single line shown to the user. It names the file or flag, what was found and what
    was expected. ``dist_util.run_main`` prints it without a traceback. Line breaks and other control characters, as in
    the keys of a checkpoint, are escaped, and long lines shortened.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        line = " ".join((text if len(text) < 100_000 else text[:50_000] + text[-50_000:]).splitlines())
        line = re.sub(r"[\x00-\x1f\x7f]", lambda found: repr(found[0])[1:-1], line)
        line = re.sub(r"(\S{200})\S{200,}(\S{100})", r"\1...\2", line)
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}")


class InputValueError(InputError, ValueError):
    """An ``InputError`` in a place where callers of the public interface already catch ``ValueError``."""


class DamagedError(InputError):
    """A file that can be read but differs from what was written under its name.

    :param path: of the file, where the caller does not know it.
    """

    def __init__(self, message: object = "", path: Path | None = None):
        super().__init__(message)
        self.path = path


class Stopped(SystemExit):
    """An end that all ranks have agreed on, with nothing lost.

    :param status: exit status of the process. line: what stopped it, in one line.
    """

    def __init__(self, status: int, line: str):
        super().__init__(status)
        self.line = line


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does; with exit status 143."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type where there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(error: BaseException) -> str:
    """Return the first line of an error, shortened."""
    text = first_line(error)
    return text if len(text) <= 160 else text[:157] + "..."


def counted(number: int, things: str, form: str = "") -> str:
    """Return a number with its noun, "1 class" for "classes". form: of the number, as in an f-string."""
    one = things.removesuffix("es" if things.endswith("sses") else "s")
    return f"{number:{form}} {one if number == 1 else things}"


def some_of(names: Sequence[str]) -> str:
    """Return the first three of some names, with "..." if there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
