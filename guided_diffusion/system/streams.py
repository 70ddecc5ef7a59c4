"""Output that no run dies of: standard streams and log files drop what cannot be written."""

from __future__ import annotations

import atexit
import csv
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from guided_diffusion.errors import InputError

_log = logging.getLogger(__name__)


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
    while (nowhere := os.open(os.devnull, os.O_RDWR)) < 3:  # the system gives the lowest that is free
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for name in ("stdout", "stderr"):
        # None if it was closed at the start; its descriptor may be some other file's by now.
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        if not isinstance(stream, BestEffort):
            with suppress(AttributeError):  # it is of some other kind
                stream.reconfigure(errors="backslashreplace")  # names of files need not be text
            setattr(sys, name, BestEffort(stream))
            atexit.register(_settle, stream)


def _settle(stream: TextIO) -> None:
    """Leave nothing on which Python, when it ends, would fail: its exit status would be 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_result(lines: Iterable[str]) -> None:
    """Print what a program is there for. InputError if that fails, but a reader that left (`| head`) saw enough."""
    try:
        with suppress(BrokenPipeError):
            print("\n".join(lines), file=getattr(sys.stdout, "wrapped", sys.stdout), flush=True)
    except OSError as error:
        raise InputError(f"standard output: cannot be written: {error.strerror}") from error


class LogFile:
    """A file to add to. A failure is one warning in the file's life; what comes later is tried anew."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._warned = False
        self.write("")

    def write(self, text: str | bytes) -> None:
        """Add all of it or nothing; in UTF-8, with escapes for what is no text, such as the bytes of a file's name."""
        with self.attempt():
            if self._file is None or self._file.closed:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab")  # noqa: SIM115
            size = os.fstat(self._file.fileno()).st_size
            try:
                self._file.write(text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))
                self._file.flush()
            except OSError:
                self.close()
                with suppress(OSError):
                    os.truncate(self.path, size)  # half a line would spoil the next one
                raise

    def close(self) -> None:
        """Let go of the file, which another text opens again."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Go on after a block that could not read or write the file."""
        try:
            yield
        except (OSError, InputError, csv.Error) as error:
            self.close()
            if not self._warned:
                self._warned = True  # first, because the warning may be meant for this very file
                why = getattr(error.__cause__ or error, "strerror", None) or error
                _log.warning("warning: %s: %s; the run goes on, with gaps in this file", self.path, why)
