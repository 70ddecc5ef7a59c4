"""One stage as a process group of its own: a limit, the end of its log, and nothing left alive."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "ok", "failed" or "cut" (its limit was over), and the last lines of its log."""

    status: str
    seconds: float
    tail: list[str]


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_stage(command: list[str], log: Path, limit: float, environment: dict[str, str], cwd: Path) -> Outcome:
    """Run a command for at most `limit` seconds; then it and all that it started is killed.

    :param log: the file that takes its stdout and stderr.
    """
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=cwd,
            start_new_session=True,
        )  # fmt: skip
    status = "cut"
    try:
        with suppress(subprocess.TimeoutExpired):
            status = "failed" if process.wait(max(limit, 0.0)) else "ok"
    finally:
        end_all(process)
    lines = log.read_text(errors="replace").splitlines()
    return Outcome(status, time.monotonic() - start, [line[:300] for line in lines[-12:]])


def end_all(process: subprocess.Popen) -> None:
    """SIGTERM to the process's group and to all descendants of this process, then SIGKILL to what is left."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + patience
        while (alive := descendants(os.getpid())) and time.monotonic() < end:
            process.poll()
            for pid in alive:
                if pid != process.pid:
                    with suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)
        if not alive:
            break
    process.poll()


def descendants(pid: int) -> list[int]:
    """All processes below one, as /proc tells; zombies too, until they are waited for."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found
