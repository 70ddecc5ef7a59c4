"""Running a stage as a process group with a time limit, of which nothing is left alive."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run_stage(command: list[str], log: Path, limit: float, environment: dict[str, str], cwd: Path) -> dict[str, Any]:
    """Run a command for at most `limit` seconds; then kill it and everything that it started.

    :param log: the file that takes its stdout and stderr.
    :return: "status": "ok", "failed" or "cut" (the limit was over); "seconds"; unless ok "log", its last lines.
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
    row = {"status": status, "seconds": round(time.monotonic() - start, 1)}
    lines = log.read_text(errors="replace").splitlines()
    return row if status == "ok" else row | {"log": [line[:300] for line in lines[-12:]]}


def end_all(process: subprocess.Popen) -> None:
    """Send SIGTERM to the process's group and to all descendants of this process, then SIGKILL to those left."""
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
    """All descendants of a process, from /proc; zombies too, until they are waited for."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *descendants(child)]
    return found
