"""Writing of finished results while the next are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def writing_behind(write: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Yield a function that calls `write` in a thread of its own, one call at a time, in order; wait for the last.

    A call returns at once unless the one before is still running, so at most two results are in memory. An exception
    is raised by the next call, or at the end. Results handed over before the with-block fails are still written.
    """
    running = Future()
    running.set_result(None)

    def hand_over(*args: Any) -> None:
        nonlocal running
        running.result()
        running = pool.submit(write, *args)

    with ThreadPoolExecutor(max_workers=1) as pool:
        yield hand_over
    running.result()
