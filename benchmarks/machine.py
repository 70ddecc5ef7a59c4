"""The machine that is measured, and the files of its results."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from itertools import count
from pathlib import Path
from typing import Any

from guided_diffusion.io.atomic import write_json

RESULTS = Path(__file__).with_name("results")


def cpu_name() -> str:
    """The processor's name from /proc/cpuinfo, else its architecture."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()


def save_result(device: str, what: str, report: dict[str, Any]) -> None:
    """Write today's results of a kind on a device to a file of their own in benchmarks/results, and say which."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    stem = f"{name}-{what}-{datetime.date.today()}"
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.json" for number in count(1))
    path = next(path for path in map(RESULTS.joinpath, names) if not path.exists())
    write_json(path, report)
    print(f"written to {path.resolve()}", file=sys.stderr)
