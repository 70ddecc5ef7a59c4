"""What a stage is told, and where it puts what it has measured: on the disk as soon as it is measured."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


class OutOfTime(BaseException):
    """A case's own limit was over; no Exception, which what is measured may take for a failure of its own."""


@dataclass(frozen=True)
class Context:
    """A stage's surroundings.

    :param deadline: of time.monotonic(), when the stage will be killed.
    :param tiny: smallest sizes, and compilation that only traces ("aot_eager").
    """

    stage: str
    out: Path
    device: str
    tiny: bool
    deadline: float

    def left(self) -> float:
        """Seconds until the stage is killed."""
        return self.deadline - time.monotonic()

    def add(self, what: str, **values: Any) -> None:
        """Append one result to the file."""
        append(self.out, {"stage": self.stage, "what": what, **values})

    def case(self, name: str, limit: float, measure: Callable[[], None]) -> None:
        """One measurement that may fail or take too long by itself: that is its result then, and the next begins."""

        def stop(*_: object) -> None:
            raise OutOfTime(f"not done within {limit:.0f} s")

        limit = min(limit, self.left() - 1.0)
        if limit <= 0:
            self.add(name, error="no time was left")
            return
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            measure()
        except (Exception, OutOfTime) as error:  # any: the rest must be measured
            self.add(name, error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def append(out: Path, row: dict[str, Any]) -> None:
    """Add a row to the results; it is on the disk when this returns."""
    print(json.dumps(row), flush=True)
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All whole rows; a last one that was cut off in the middle is left out."""
    rows = []
    for line in (out / RESULTS).read_text().splitlines() if (out / RESULTS).exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
