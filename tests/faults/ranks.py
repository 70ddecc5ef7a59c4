"""The ranks of one run, forked from this process, which has PyTorch loaded: a start takes a second instead of five."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from guided_diffusion.distributed.watchdog import PATIENCE_VARIABLE
from tests.faults.jobs import Job
from tests.support.fork_server import become
from tests.support.helpers import clean_environment, two_ranks

HANG = 120.0  # seconds after which a run that should have ended counts as hanging


class Ranks:
    """A job's processes; a context manager that leaves none behind.

    As under a launcher, ranks that have not met yet are ended when one of them dies; afterwards they are on
    their own, as on different machines.
    """

    def __init__(self, job: Job, folder: Path, processes: int, patience: int | None = None):
        environments = two_ranks() if processes == 2 else [clean_environment()]
        extra = {} if patience is None else {PATIENCE_VARIABLE: str(patience)}
        request = {"program": str(job.program), "argv": job.arguments(folder), "cwd": str(folder.parent)}
        self._outputs = [[f"{folder}.out{rank}", f"{folder}.err{rank}"] for rank in range(processes)]
        self.statuses: dict[int, int] = {}
        self.pids: list[int] = []
        for environment, outputs in zip(environments, self._outputs, strict=True):
            pid = os.fork()
            if pid == 0:
                become(request, environment | extra, outputs)
            self.pids.append(pid)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for rank, pid in enumerate(self.pids):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)  # with data workers, which notice their parent's end only later
            if rank not in self.statuses:
                os.waitpid(pid, 0)

    @property
    def running(self) -> list[int]:
        """The ranks that have not ended."""
        for rank, pid in enumerate(self.pids):
            if rank not in self.statuses:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.statuses[rank] = os.waitstatus_to_exitcode(status)
        return [rank for rank in range(len(self.pids)) if rank not in self.statuses]

    @property
    def text(self) -> str:
        """The output of all ranks."""
        return "".join(Path(path).read_text() for paths in self._outputs for path in paths if Path(path).exists())

    def have_met(self) -> bool:
        return "Logging to" in self.text

    def send(self, ranks: list[int], number: signal.Signals) -> None:
        for rank in ranks:
            if rank not in self.statuses:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[rank], number)

    def wait(self, seconds: float = HANG) -> bool:
        """Whether all ranks end within that time."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait_until(self, condition, seconds: float = HANG) -> bool:
        """Whether a condition becomes true before the ranks end."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.01)
        return condition()
