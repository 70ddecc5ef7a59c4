"""The one exception a user is meant to see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_LONGEST = 4000  # characters of a line; a path or a value in it may have any number


class InputError(Exception):
    """Something the user gave us is wrong: a flag, a file, an environment variable.

    ``str(error)`` is the single line shown to the user. It names the file or flag, what was found and what
    was expected. ``dist_util.run_main`` prints it without a traceback. It stays a line, and a readable one, where a
    file's own names, such as the keys of a checkpoint, hold line breaks or other control characters, or are long.
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
    """A file that can be read but is not what was once written under its name.

    :param path: of the file, where the one who asked for it does not know it.
    """

    def __init__(self, message: object = "", path: Path | None = None):
        super().__init__(message)
        self.path = path


class Stopped(SystemExit):
    """All ranks have agreed to end here, with this exit status, and nothing is lost by it.

    :param status: of the process. line: what stopped it, in one line.
    """

    def __init__(self, status: int, line: str):
        super().__init__(status)
        self.line = line


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does; with exit status 143."""


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def brief(error: BaseException) -> str:
    """The first line of an error, shortened."""
    text = first_line(error)
    return text if len(text) <= 160 else text[:157] + "..."


def counted(number: int, things: str, form: str = "") -> str:
    """A number of things, "1 class" of "classes". form: of the number, as in an f-string."""
    one = things.removesuffix("es" if things.endswith("sses") else "s")
    return f"{number:{form}} {one if number == 1 else things}"


def some_of(names: Sequence[str]) -> str:
    """The first three of some names, and that there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
