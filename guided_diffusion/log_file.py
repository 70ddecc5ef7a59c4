"""Files of a run's log, which is not worth the run: what cannot be written to them is left out."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from guided_diffusion.errors import InputError

log = logging.getLogger(__name__)


class LogFile:
    """A file to add to. A failure is one warning in the file's life; what comes later is tried anew."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._warned = False
        with self.attempt():
            self._open()

    def write(self, text: str) -> None:
        """Add a text in UTF-8; what is no text, such as the bytes of a strange file name, as escapes."""
        self.append(text.encode(errors="backslashreplace"))

    def append(self, data: bytes) -> None:
        """Add all of it or nothing."""
        with self.attempt():
            file = self._open()
            size = os.fstat(file.fileno()).st_size
            try:
                file.write(data)
                file.flush()
            except OSError:
                self.close()
                with suppress(OSError):
                    os.truncate(self.path, size)  # half a line would spoil the next one
                raise

    def flush(self) -> None:
        """Nothing is ever held back."""

    def close(self) -> None:
        """Let go of the file; another text opens it again."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Go on after a block that could not read or write the file."""
        try:
            yield
        except InputError as error:
            self._give_up(str(error))
        except (OSError, csv.Error) as error:
            self._give_up(f"{self.path}: {getattr(error, 'strerror', None) or error}")

    def _give_up(self, why: str) -> None:
        self.close()
        if not self._warned:
            self._warned = True  # first, because the warning may be meant for this very file
            log.warning("warning: %s; the run goes on, with gaps in this file", why)

    def _open(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115
        return self._file
