"""The identity of processes on this machine, and whether they still run."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Return a name that two processes share if and only if they see each other's process ids."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {namespace.readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {os.getpid()}"


@cache
def machine_digest() -> str:
    """Return eight hexadecimal digits of `machine`, short enough for the name of a file."""
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks after the boot; None if it has ended, "" if that is unknown.

    A zombie process has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # also where others' processes are hidden
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except (OSError, OverflowError):
            pass
        return ""
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
