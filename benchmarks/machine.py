"""The machine that is measured, and the files of its results."""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()


def result_path(device: str, what: str) -> Path:
    """The file of today's results of a kind on a device."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{name}-{what}-{datetime.date.today()}.json"
