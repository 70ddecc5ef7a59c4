"""A stage's surroundings, and its results: on the disk as soon as they are measured."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"


class OutOfTime(BaseException):
    """The limit of a case is over. No Exception, which the measured code may catch as a failure of its own."""


@dataclass(frozen=True)
class Context:
    """A stage's surroundings.

    :param stage: its name in the results.
    :param out: the folder of the results.
    :param tiny: smallest sizes, and compilation that only traces ("aot_eager").
    :param deadline: the time.monotonic() at which the stage will be killed.
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
        """Run one measurement; if it fails or takes longer than `limit` seconds, that is its result."""

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


def run_all(context: Context, checks: dict[str, Callable[[], None]]) -> None:
    """Run checks, given by name, each with a limit of its own; one that passes is a result too."""

    def run(name: str) -> None:
        start = time.perf_counter()
        checks[name]()
        context.add(name, passed=True, seconds=round(time.perf_counter() - start, 2))

    for name in checks:
        context.case(name, 120 if context.tiny else 60, partial(run, name))


def append(out: Path, row: dict[str, Any]) -> None:
    """Add a row to the results; it is on the disk when this returns."""
    print(json.dumps(row), flush=True)
    with (out / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All complete rows; a last one that was cut off in the middle is left out."""
    rows = []
    for line in (out / RESULTS).read_text().splitlines() if (out / RESULTS).exists() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows
