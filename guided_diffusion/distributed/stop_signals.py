"""Signals: SIGUSR1 asks a training to save, SIGTERM and SIGINT to save and stop; SIGTERM stops a sampling run."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from guided_diffusion.distributed import rendezvous
from guided_diffusion.errors import Stopped, Terminated
from guided_diffusion.runs import logger

# In order of precedence, where ranks got different ones.
_KNOWN = (None, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
_TOGETHER = 1.0  # seconds; launchers and timeout(1) send one request twice, to a process and to its group


class StopSignals:
    """A context manager that catches the signals, on which all ranks agree between two steps.

    A second SIGTERM or SIGINT, more than a second after the first, ends the process at once.
    """

    def __enter__(self) -> StopSignals:
        self._stop: signal.Signals | None = None
        self._stop_time = 0.0
        self._save = False
        # A Gloo group of its own, because a few bytes on the CPU must not wait for a GPU.
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=rendezvous.TIMEOUT) if several else None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # the only one that may catch signals
            self._before = {number: signal.signal(number, self._catch) for number in _KNOWN[1:]}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self._save = True
        elif self._stop is None:
            self._stop, self._stop_time = signal.Signals(number), time.monotonic()
        else:
            _end_if_another(number, self._stop_time)

    def asked(self) -> signal.Signals | None:
        """Return the signal that any rank got since the last call, the same on all ranks. A collective."""
        save, self._save = self._save, False
        mine = self._stop or (signal.SIGUSR1 if save else None)
        if self._group is None:
            return mine
        weight = torch.tensor(_KNOWN.index(mine), dtype=torch.int32)
        dist.all_reduce(weight, dist.ReduceOp.MAX, group=self._group)
        return _KNOWN[int(weight)]


@contextmanager
def terminating(consequence: str, tell: Callable[[str], None] = logger.log) -> Iterator[None]:
    """Let SIGTERM raise ``Terminated`` inside a with-block, as Ctrl-C raises KeyboardInterrupt; log either.

    A second one, more than a second after the first, ends the process at once.

    :param consequence: what happens to the work, for the line that says what stopped it.
    """
    first: list[float] = []

    def raise_once(number: int, _frame: object) -> None:
        if not first:
            first.append(time.monotonic())
            raise Terminated
        _end_if_another(number, first[0])

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_once)
    try:
        yield
    except KeyboardInterrupt as error:
        tell(f"{'stopped by SIGTERM' if isinstance(error, Terminated) else 'interrupted'}; {consequence}")
        raise
    finally:
        if not first:  # else the process ends, and launchers may send the signal twice
            signal.signal(signal.SIGTERM, before)


def _end_if_another(number: int, first: float) -> None:
    """End the process by the signal, unless it is the first one once more. first: when that came, monotonic."""
    if time.monotonic() - first > _TOGETHER:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def how_to_resume() -> str:
    """Return how an interrupted run is resumed; without the flag the same command might begin a new run."""
    return f"the same command with --log_dir {shlex.quote(logger.get_dir())} resumes from there"


def leave(number: signal.Signals | None, saved: str) -> None:
    """Raise ``Stopped`` with 128 + signal, on all ranks, where the signal asks for that."""
    if number in (signal.SIGINT, signal.SIGTERM):
        line = f"stopped by {number.name}; saved {saved}; {how_to_resume()}"
        logger.log(line)
        raise Stopped(128 + number, line)
