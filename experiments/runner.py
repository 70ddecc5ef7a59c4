"""Runner of steps: in order of what they need, a few at a time; where one fails, the others are run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from pathlib import Path
from typing import NoReturn

from experiments.commands import shell
from experiments.spec import ROOT
from experiments.steps import Records, Step, in_order
from guided_diffusion.errors import InputError


class Runner:
    """Runs steps whose files are below a folder.

    :param environment: variables for the commands on top of this process's.
    :param show: also show a step's output as it comes, when there is one at a time.
    """

    def __init__(self, out: Path, environment: dict[str, str] | None = None, show: bool = True):
        self.records = Records(out)
        self.logs = ROOT / out / "logs"
        self._show, self._added = show, environment or {}
        # `python` and `mpiexec` are those of the environment that runs this.
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # And the code is that of this repository, installed or not.
        code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._environment = {**os.environ, **self._added, "PATH": search, "PYTHONPATH": code}
        self._processes: set[subprocess.Popen] = set()
        self._stopping, self._lock = False, threading.Lock()

    def run(self, steps: Sequence[Step], jobs: int = 1) -> int:
        """Run what is not done, `jobs` steps at a time; returns how many steps that were.

        InputError at the end when steps failed: the others have been run, but for those that need them. InputError at
        once where a step needs mpiexec and there is none.
        """
        launched = any(step.command[0] == "mpiexec" for step in steps)
        if launched and shutil.which("mpiexec", path=self._environment["PATH"]) is None:
            raise InputError(
                "mpiexec: found none in PATH, expected that of an MPI; `pip install -e .[mpi]` brings one, "
                "and `--nproc 1` of `ed-dpm run` needs none"
            )
        self._number, self._total, self._began = 0, len(steps), time.perf_counter()
        self._stopping, self._jobs = False, jobs
        places = {step: place for place, step in enumerate(steps)}
        order, ready, running = in_order(steps), [], {}
        order.prepare()
        made: set[Path] = set()
        unmade: set[Path] = set()
        failures: dict[str, str] = {}
        count = 0
        with ThreadPoolExecutor(jobs) as pool, self._ending_children():
            while order.is_active():
                for step in order.get_ready():
                    heappush(ready, places[step])
                while ready and len(running) < jobs:
                    step = steps[heappop(ready)]
                    running[pool.submit(self._one, step, made, unmade)] = step
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    step = running.pop(future)
                    order.done(step)
                    try:
                        if future.result():
                            count += 1
                            made.update(step.outputs)
                    except (InputError, OSError) as error:
                        failures[step.name] = str(error)
                        unmade.update(step.outputs)
        if failures:
            self._report(failures)
        return count

    def line(self, command: Sequence[str]) -> str:
        """A command as typed in the repository's root."""
        return shell([*(f"{name}={value}" for name, value in self._added.items()), *command])

    def _report(self, failures: dict[str, str]) -> NoReturn:
        for name, reason in failures.items():
            self._print(f"failed: {name}: {reason}")
        first = next(iter(failures.values()))
        more = f" (and {len(failures) - 1} more steps, see above)" if len(failures) > 1 else ""
        raise InputError(f"{first}{more}; the same command runs what is missing")

    def _one(self, step: Step, made: Set[Path], unmade: Set[Path]) -> bool:
        """Run a step unless it is done; return whether it was run. made, unmade: files of steps that ran or failed."""
        if unmade & set(step.inputs):
            raise InputError("not run: it needs a step that failed")
        with self._lock:
            self._number += 1
            label = f"[{self._number:3d}/{self._total}] {step.name}"
        done = self.records.is_done(step)
        if done and (step.precious or not made & set(step.inputs)):
            return False
        begun = self.records.start(step)
        self._print(f"{label}\n{self.line(step.command)}")
        started = time.perf_counter()
        self._call(step)
        now = time.perf_counter()
        self.records.finish(step, None if begun else now - started, self._jobs)
        self._print(f"{label}: {now - started:.1f} s; {now - self._began:.0f} s in all")
        return True

    def _call(self, step: Step) -> None:
        """Run the command with its output in the log. InputError with the end of the log where it fails."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{step.name}.log"
        with log.open("wb", buffering=0) as file:
            with self._lock:
                if self._stopping:
                    raise InputError("interrupted")
                process = subprocess.Popen(
                    step.command, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                self._processes.add(process)
            targets = [file, sys.stderr.buffer] if self._show and self._jobs == 1 else [file]
            for piece in iter(lambda: process.stdout.read1(1 << 16), b""):
                for target in targets:
                    with suppress(OSError):  # a full disk, a closed pipe: not worth the step
                        target.write(piece)
                        target.flush()
            code = process.wait()
            process.stdout.close()
            self._processes.discard(process)
        if code:
            raise InputError(f"exit status {code}, expected 0; {log} ends with: {last_line(log)}")

    @contextmanager
    def _ending_children(self) -> Iterator[None]:
        """End the commands that are running when the loop ends, be it by SIGTERM."""

        def stop(*_: object) -> NoReturn:
            raise KeyboardInterrupt

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, stop) if main else None
        try:
            yield
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
            with self._lock:
                self._stopping = True
                for process in self._processes:
                    process.terminate()

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)


def last_line(log: Path) -> str:
    """The last line of a log that says something: an error's where there is one."""
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(errors="replace").strip()) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing"])[-1]
