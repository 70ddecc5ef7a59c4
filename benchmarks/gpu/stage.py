"""A stage's own process: ``python -m benchmarks.gpu.stage NAME --out DIR ...``, started by the command."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.record import Context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, help="seconds")
    parser.add_argument("--fault", default="")
    args = parser.parse_args()
    fail(args.fault)
    deadline = time.monotonic() + args.limit
    context = Context(args.name, args.out, args.device, args.tiny, deadline)
    importlib.import_module(f"benchmarks.gpu.{args.name.replace('-', '_')}").run(context)


def fail(fault: str) -> None:
    """For tests: "crash", or "hang" with a child that has left the process group and ignores SIGTERM."""
    if fault == "crash":
        os.abort()
    if fault == "hang":
        child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
        print("hanging", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
