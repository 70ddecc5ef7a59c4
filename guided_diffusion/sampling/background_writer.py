"""Writing finished work while the next is being made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class WriteBehind:
    """`write` in a thread of its own, one call at a time, in order; a context manager, which waits for the last.

    Calls return at once, unless the one before is not done yet: so at most two results are in memory. What a call
    raises comes out of the next one, or at the end. Where the with-block fails by itself, what it handed over before
    is still written.
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
            self._writing = None
