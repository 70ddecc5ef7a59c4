"""A stage's own process, started by the command: ``python -m benchmarks.gpu.stage MODULE CONTEXT [FAULT]``."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.record import Context


def main() -> None:
    """Run a module of this package; CONTEXT are the fields of a `Context`, JSON."""
    module, fields, *fault = sys.argv[1:]
    if fault:
        fail(*fault)
    values = json.loads(fields)
    context = Context(**values | {"out": Path(values["out"])})
    importlib.import_module(f"benchmarks.gpu.{module}").run(context)


def fail(fault: str) -> None:
    """For tests: "crash", or "hang" with a child that has left the process group and ignores SIGTERM."""
    if fault == "crash":
        os.abort()
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    print("hanging", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
