"""Standard streams that no run dies of: closed, broken or on a full disk, they drop what cannot be written."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from guided_diffusion.errors import InputError
from guided_diffusion.files import reason


class BestEffort:
    """A text stream that is written to as far as that is possible; otherwise the one that it wraps."""

    def __init__(self, stream: TextIO):
        self.wrapped = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self.wrapped.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.wrapped.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def protect() -> None:
    """Open the standard descriptors that are closed, on nothing, and make sys.stdout and sys.stderr best effort."""
    for descriptor in range(3):  # upwards, because the system gives the lowest that is free
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, BestEffort):
            continue
        if stream is None:  # its descriptor, once closed, may be some other file's by now
            stream = open(os.devnull, "w")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
        setattr(sys, name, BestEffort(stream))
        atexit.register(_settle, stream)


def print_result(lines: Iterable[str]) -> None:
    """Print what a program is there for. A reader that has left (`| head`) has seen enough.

    :raises InputError: stdout cannot be written.
    """
    stream = sys.stdout.wrapped if isinstance(sys.stdout, BestEffort) else sys.stdout
    text = "\n".join(lines)
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise InputError(f"standard output: cannot be written: {reason(error)}") from error


def _settle(stream: TextIO) -> None:
    """Leave nothing behind at which Python, when it ends, would fail: its exit status would be 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
