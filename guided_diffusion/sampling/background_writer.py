"""Writing of finished results while the next are computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class WriteBehind:
    """Call `write` in a thread of its own, one call at a time, in order; a context manager that waits for the last.

    A call returns at once unless the one before is still running, so at most two results are in memory. An exception
    is raised by the next call, or at the end. Results handed over before the with-block fails are still written.
    """

    def __init__(self, write: Callable[..., None]):
        self._write = write
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._writing: Future | None = None

    def __enter__(self) -> WriteBehind:
        return self

    def __call__(self, *args: Any) -> None:
        self._wait()
        self._writing = self._pool.submit(self._write, *args)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if failure is None:
            self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
