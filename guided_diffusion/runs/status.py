"""`status.json` in every run's directory: how far the run is, for people and schedulers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from guided_diffusion.errors import InputError
from guided_diffusion.io.atomic import temporary_path
from guided_diffusion.io.reading import read_json

NAME = "status.json"
PERIOD = 5.0  # seconds between two writings of a running run
SILENCE = 60.0  # seconds without a sign of life before that is reported
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


class Status:
    """The status of a run, written by one of its processes.

    :param total: how much there is to do, in `unit`s; None if unknown. done: how much was done before.
    """

    def __init__(self, directory: str | os.PathLike, total: int | None, unit: str, done: int = 0):
        self._path = Path(directory) / NAME
        self._initial, self._began = done, time.monotonic()
        self._last_sign, self._last_written = self._began, -PERIOD
        self._longest = 0.0
        here = {"started": _now(), "host": socket.gethostname(), "pid": os.getpid()}
        self._fields = {"state": RUNNING, "total": total, "unit": unit, **here}
        self.write(done=done)

    def alive(self, done: int) -> None:
        """Write a sign of life if the last one is old enough. Cheap enough for every step."""
        now = time.monotonic()
        self._longest, self._last_sign = max(self._longest, now - self._last_sign), now
        if now - self._last_written >= PERIOD:
            self.write(done=done)

    def write(self, *, done: int, **fields: Any) -> None:
        """Write now, with further fields. A failure (a full disk) does not stop the run."""
        # Another process of the run may have failed meanwhile.
        error = read_or_nothing(self._path.parent).get("last_error") if "updated" in self._fields else None
        self._last_written = time.monotonic()
        seconds, total = self._last_written - self._began, self._fields["total"]
        rate = (done - self._initial) / seconds if done > self._initial else None
        self._fields |= {
            "done": done,
            "rate": rate and float(f"{rate:.4g}"),
            "eta": round((total - done) / rate, 1) if rate and total is not None else None,
            "updated": _now(),
            "longest_silence": round(self._longest, 3),
            "last_error": error,
            **fields,
        }
        _replace(self._path, self._fields)

    def leave(self, done: int, **fields: Any) -> None:
        """Write for the last time, keeping the end of the run that another process has noted meanwhile."""
        noted = read_or_nothing(self._path.parent)
        ended = {"state": noted["state"]} if noted.get("state") in (FAILED, STOPPED) else {}
        self.write(done=done, **fields, **ended)


def note_failure(directory: str | os.PathLike, line: str, state: str = FAILED, consequence: bool = False) -> None:
    """Write a run's end to its status, from any of its processes.

    A finished run keeps that state: the failure is then that of a command that was refused.

    :param consequence: whether it follows from another process's failure, whose line is kept.
    """
    path = Path(directory) / NAME
    found = read_or_nothing(directory)
    if consequence and found.get("state") != FINISHED and found.get("last_error"):
        line = found["last_error"]
        state = found["state"] if found["state"] == STOPPED else state
    elif found.get("state") == FINISHED:
        state = FINISHED
    _replace(path, found | {"state": state, "updated": _now(), "last_error": line})


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Return the contents of a status.json. FileNotFoundError if there is none; InputError if it is malformed."""
    found = read_json(path, "a run's status as JSON")
    if not isinstance(found.get("state"), str):
        raise InputError(f"{path}: expected a run's status, found JSON without a state")
    return found


def read_or_nothing(directory: str | os.PathLike) -> dict[str, Any]:
    """Return the status of a run; empty where there is none or it is damaged."""
    try:
        return read(Path(directory) / NAME)
    except (FileNotFoundError, InputError):
        return {}


def find(directory: str | os.PathLike) -> dict[Path, dict[str, Any]]:
    """Return the statuses of all runs in a tree of directories, by directory. InputError where there are none."""
    root = Path(directory)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder, expected that of a run or of several")
    found = {path.parent: read(path) for path in sorted(root.rglob(NAME))}
    if not found:
        raise InputError(f"{root}: no {NAME} in it or below, expected the folder of a run or of several")
    return found


def table(statuses: dict[Path, dict[str, Any]], root: Path, now: datetime | None = None) -> Iterator[str]:
    """Yield the lines of a table with a row for each run; errors and long silences on lines of their own."""
    rows = [("run", "state", "done", "rate", "left", "updated")]
    notes: list[list[str]] = [[]]
    for directory, status in statuses.items():
        age = silence(status, now)
        name = str(directory.relative_to(root)) if directory != root else directory.absolute().name
        rows.append(_row(name, status, age))
        notes.append([])
        if is_silent(status, now):
            notes[-1].append(f"no sign of life for {_span(age)} (process {status.get('pid')} on {status.get('host')})")
        if status.get("last_error"):
            notes[-1].append(str(status["last_error"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, more in zip(rows, notes, strict=True):
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        yield from (f"  {line}" for line in more)


def silence(status: dict[str, Any], now: datetime | None = None) -> float:
    """Return the seconds since a status was written; inf where it does not say when."""
    try:
        age = (now or datetime.now().astimezone()) - datetime.fromisoformat(status["updated"])
        return max(0.0, age.total_seconds())
    except (KeyError, TypeError, ValueError):
        return float("inf")


def is_silent(status: dict[str, Any], now: datetime | None = None) -> bool:
    """Return whether a running run was silent for a minute, and much longer than between its earlier steps."""
    longest = status.get("longest_silence")
    usual = longest if isinstance(longest, (int, float)) else 0.0
    return status["state"] == RUNNING and silence(status, now) > max(SILENCE, 5 * usual)


def _row(name: str, status: dict[str, Any], age: float) -> tuple[str, ...]:
    """Return a run's row of the table, with "-" for what its status does not tell."""
    done, total, rate, eta = (status.get(key) for key in ("done", "total", "rate", "eta"))
    of = f"/{total:,}" if isinstance(total, int) else ""
    return (
        name,
        status["state"],
        f"{done:,}{of} {status.get('unit', '')}" if isinstance(done, int) else "-",
        f"{rate:.3g}/s" if isinstance(rate, (int, float)) else "-",
        _span(eta) if status["state"] == RUNNING and isinstance(eta, (int, float)) else "-",
        f"{_span(age)} ago",
    )


def _span(seconds: float) -> str:
    """Return a duration such as "40 s", "12 min", "3.5 h", "2.1 d"."""
    for size, unit in ((86400, "d"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _replace(path: Path, fields: dict[str, Any]) -> None:
    """Write a status atomically, but without waiting for the disk, as results do."""
    temporary = temporary_path(path)
    with contextlib.suppress(OSError):
        try:
            temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
