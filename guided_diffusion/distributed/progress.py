"""Progress of long work, on rank 0: a bar on stderr, `status.json` in the run's directory, a line at the end."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from guided_diffusion.distributed.collectives import get_rank
from guided_diffusion.errors import counted
from guided_diffusion.runs import logger, status


class Progress:
    """A context manager that shows done/total, rate and remaining time.

    :param initial: how much was done before.
    :param directory: of the run, for its `status.json`; None: no such file.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        initial: int = 0,
        directory: str | os.PathLike | None = None,
    ):
        # Often on a terminal, a line every ten seconds at most in a log file.
        self._bar = tqdm(
            total=total,
            initial=initial,
            unit=f" {unit}",
            disable=get_rank() != 0,
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            smoothing=0.05,
            file=sys.stderr,
        )
        self._total, self._unit, self._initial, self._directory = total, unit, initial, directory
        self._began = time.monotonic()
        self.n = initial
        writes = directory is not None and get_rank() == 0
        self._status = status.Status(directory, total, unit, initial) if writes else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._status is not None:
            short = kind is None and self._total is not None and self.n < self._total
            self._status.leave(self.n, **({"state": status.STOPPED} if short else {}))

    def update(self, n: int = 1) -> None:
        """Count n more as done."""
        self.n += n
        self._bar.update(n)
        self.alive()

    def alive(self) -> None:
        """Give a sign of life between two updates that may be minutes apart."""
        if self._status is not None:
            self._status.alive(self.n)

    def finish(self, **more: Any) -> None:
        """Log the time and memory of the run and write them to its status, which becomes "finished".

        Called when everything is written.

        :param more: other entries of the status's summary.
        """
        if get_rank() != 0:
            return
        seconds, made = time.monotonic() - self._began, self.n - self._initial
        peaks = peak_memory()
        summary = {"seconds": round(seconds, 3), "made": made, **peaks, **more}
        rate = f"{made / seconds:.3g} {self._unit}/s" if made else "nothing left to do"
        memory = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in peaks.items())
        directory = Path(self._directory or logger.get_dir()).absolute()
        done = counted(made, self._unit, ",")
        logger.log(f"finished: {done} in {seconds:.1f} s ({rate}); {memory}; files: {directory}")
        if self._status is not None:
            self._status.write(done=self.n, state=status.FINISHED, summary=summary)


def note_complete(directory: str | os.PathLike, total: int, unit: str) -> None:
    """Write "finished" to the status of a complete run that ended before it could do so; from rank 0."""
    found = status.read_or_nothing(directory)
    if get_rank() == 0 and found.get("state") != status.FINISHED:
        with Progress(total, unit, initial=total, directory=directory) as progress:
            progress.finish()


def peak_memory() -> dict[str, int]:
    """Return the peak memory of this process in bytes: of the machine, and of its GPU where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {"peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        memory["peak_cuda_memory"] = torch.cuda.max_memory_allocated()
    return memory
