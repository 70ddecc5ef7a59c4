"""The whole job on handwritten digits: train, sample, evaluate, report.

    python demo/run.py            # or: make demo; the report is runs/demo/report.html

Interrupted? The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for runs without installation

from demo.digits import write_parts  # noqa: E402
from demo.plan import FULL, QUICK, Plan, Settings, Step  # noqa: E402
from guided_diffusion.checkpoint import write_bytes_atomically  # noqa: E402
from guided_diffusion.dist_util import run_main  # noqa: E402
from guided_diffusion.errors import InputError  # noqa: E402

# One thread a process: two processes share two cores, and more threads would fight for them.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="folder of all files")
    parser.add_argument("--quick", action="store_true", help="a few samples and iterations, to test the machinery")
    args = parser.parse_args()
    settings = QUICK if args.quick else FULL
    plan = Plan(short(args.out), settings)
    os.chdir(ROOT)

    claim(plan.out, settings)
    print(f"writing the digits' three parts to {plan.data.absolute()}")
    write_parts(plan.data)
    runner = Runner(plan)
    runner.run(plan.training())
    runner.run(plan.sampling(), at_once=settings.sampling_at_once)
    runner.run(plan.evaluation(), at_once=2)

    from demo.report import write_report  # matplotlib only where it is used

    print("drawing the report", flush=True)
    table = write_report(plan, commands=runner.commands)
    print(f"\n{table}\n\ntotal time: {runner.elapsed():.0f} s\nreport: {(plan.out / 'report.html').absolute()}")


def short(path: Path) -> Path:
    """The path relative to the repository where it lies inside it, as one would type it; else absolute."""
    path = path.absolute()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def claim(out: Path, settings: Settings) -> None:
    """Note the settings in `out`; InputError if another run's files are there."""
    path, mine = out / "settings.json", json.loads(json.dumps(dataclasses.asdict(settings)))
    if path.exists() and json.loads(path.read_text()) != mine:
        raise InputError(f"{path}: found the settings of another run, expected {mine}; remove {out} or use --out")
    with write_bytes_atomically(path) as file:
        file.write(json.dumps(mine, indent=2).encode() + b"\n")


class Runner:
    """Runs steps one after another or a few at a time, each with a log file, and skips those that are done."""

    def __init__(self, plan: Plan):
        self.logs = plan.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.total = len(plan.training()) + len(plan.sampling()) + len(plan.evaluation())
        self.commands: list[str] = []
        self._numbers, self._started = count(1), time.perf_counter()
        self._printing, self._failed = threading.Lock(), threading.Event()
        # `python` and `mpiexec` are those of the environment that runs the demo.
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if shutil.which("mpiexec", path=search) is None:
            raise InputError("mpiexec: found none in PATH, expected that of an MPI; `pip install -e .[mpi]` brings one")
        self._environment = {**os.environ, **ENVIRONMENT, "PATH": search}

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def run(self, steps: list[Step], at_once: int = 1) -> None:
        """InputError when a step fails, the end of its log on stderr; no further ones are started then."""
        self.commands += [self._line(step) for step in steps]
        with ThreadPoolExecutor(at_once) as pool:
            try:
                list(pool.map(self._run_one, steps))
            except BaseException:
                self._failed.set()
                raise

    @staticmethod
    def _line(step: Step) -> str:
        return " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()) + " " + step.command

    def _run_one(self, step: Step) -> None:
        if self._failed.is_set():
            return
        label = f"[{next(self._numbers):2d}/{self.total}] {step.name}"
        if step.output.exists():
            self._print(f"{label}: done before ({step.output})")
            return
        self._print(f"{label}\n        {self._line(step)}")
        log, started = self.logs / f"{step.name}.log", time.perf_counter()
        with log.open("wb") as file:
            code = subprocess.call(
                shlex.split(step.command), stdout=file, stderr=subprocess.STDOUT, env=self._environment
            )
        if code != 0 or not step.output.exists():
            self._failed.set()
            reason = f"exit status {code}" if code else f"no {step.output}"
            self._print(f"{label}: failed; its log ends with\n{tail(log)}", file=sys.stderr)
            raise InputError(f"{step.name}: {reason}, expected success; see {log.absolute()}")
        seconds, elapsed = time.perf_counter() - started, self.elapsed()
        self._print(f"{label}: {seconds:.1f} s; {elapsed:.0f} s in all")

    def _print(self, text: str, file: TextIO | None = None) -> None:
        with self._printing:
            print(text, file=file, flush=True)


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, progress bars' overwritten states included."""
    text = path.read_text(errors="replace")
    return "\n".join(re.split(r"[\r\n]+", text.strip())[-lines:])


if __name__ == "__main__":
    run_main(main)
