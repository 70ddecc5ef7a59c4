"""Output that cannot end a run: standard streams and log files drop what cannot be written."""

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
    """A text stream that drops what cannot be written; otherwise the stream that it wraps."""

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
    """Open closed standard descriptors on the null device, and make sys.stdout and sys.stderr best effort."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) < 3:  # the system gives the lowest that is free
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for name in ("stdout", "stderr"):
        # None if it was closed at the start; its descriptor may belong to another file by now.
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        if not isinstance(stream, BestEffort):
            with suppress(AttributeError):  # another kind of stream
                stream.reconfigure(errors="backslashreplace")  # names of files need not be text
            setattr(sys, name, BestEffort(stream))
            atexit.register(_settle, stream)


def _settle(stream: TextIO) -> None:
    """Flush a stream, or point it to the null device: Python would fail to at its end, with exit status 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_result(lines: Iterable[str]) -> None:
    """Print a program's result. InputError if that fails, except where the reader has left (`| head`)."""
    try:
        with suppress(BrokenPipeError):
            print("\n".join(lines), file=getattr(sys.stdout, "wrapped", sys.stdout), flush=True)
    except OSError as error:
        raise InputError(f"standard output: cannot be written: {error.strerror}") from error


class LogFile:
    """A file to append to. The first failure is a warning; what comes later is tried anew."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._warned = False
        self.write("")

    def write(self, text: str | bytes) -> None:
        """Append all of a text or nothing; in UTF-8, with escapes for bytes that are no text, as in names of files."""
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
                    os.truncate(self.path, size)  # half a line would damage the next one
                raise

    def close(self) -> None:
        """Close the file; the next text opens it again."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Continue after a block that could not read or write the file, with a warning the first time."""
        try:
            yield
        except (OSError, InputError, csv.Error) as error:
            self.close()
            if not self._warned:
                self._warned = True  # first, because the warning may be written to this very file
                why = getattr(error.__cause__ or error, "strerror", None) or error
                _log.warning("warning: %s: %s; the run continues, with gaps in this file", self.path, why)
