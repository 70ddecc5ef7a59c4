"""A stage's own process, started by the command: ``python -m benchmarks.gpu.stage MODULE CONTEXT``."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.gpu.record import Context


def main() -> None:
    """Run a module of this package; CONTEXT are the fields of a `Context`, JSON."""
    module, fields = sys.argv[1:]
    values = json.loads(fields)
    context = Context(**values | {"out": Path(values["out"])})
    importlib.import_module(f"benchmarks.gpu.{module}").run(context)


if __name__ == "__main__":
    main()
