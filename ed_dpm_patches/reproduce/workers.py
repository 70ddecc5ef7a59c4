"""Processes that stay: each runs one step after the other without starting, importing and compiling anew."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from guided_diffusion.errors import InputError

from .book import ROOT

SAMPLERS = ("scripts/classifier_sample.py", "scripts/image_sample.py")
JUDGES = ("evaluations/evaluator.py",)
MOST_JUDGES = 64
ENDING = 1  # the exit status after which a worker ends


class Workers:
    """Worker processes for steps of one process; see `worker`. They are started when needed, and end with this one.

    :param samplers: how many sample at most, each with its networks in the GPU's memory; 0: no step has a worker.
    """

    def __init__(self, samplers: int, environment: dict[str, str]):
        self._environment, self._samplers = environment, samplers
        self._processes: set[subprocess.Popen] = set()
        self._lock, self._ended = threading.Lock(), False
        self._idle: dict[str, queue.LifoQueue] = {}
        if samplers:
            for programs, count in ((SAMPLERS, samplers), (JUDGES, MOST_JUDGES)):
                places: queue.LifoQueue = queue.LifoQueue()  # the one that worked last goes on: few are started
                for _ in range(count):
                    places.put(None)
                self._idle |= dict.fromkeys(programs, places)

    def take(self, command: Sequence[str]) -> list[str] | None:
        """The command as a worker is given it; None where no worker runs such commands."""
        words = list(command[3:] if list(command[:3]) == ["mpiexec", "-n", "1"] else command)
        return words[1:] if words[0] == "python" and words[1] in self._idle else None

    def is_full(self, command: Sequence[str], running: Iterable[Sequence[str]]) -> bool:
        """Whether a command would have to wait for a worker while others are running."""
        if not self._samples(command):
            return False
        return sum(map(self._samples, running)) >= self._samplers

    def _samples(self, command: Sequence[str]) -> bool:
        words = self.take(command)
        return words is not None and words[0] in SAMPLERS

    def run(self, words: list[str], log: Path) -> int:
        """Run a command that `take` returned, as soon as a worker is free; its exit status. InputError after `end`."""
        idle = self._idle[words[0]]
        worker = idle.get()
        status = None
        try:
            if worker is None or worker.poll() is not None:
                worker = self._start()
            status = self._ask(worker, {"command": words, "log": str(log)})
        finally:
            idle.put(None if status in (None, ENDING) else worker)
        return worker.wait() or 1 if status is None else status

    def end(self) -> None:
        """End all of them, whatever they do."""
        with self._lock:
            self._ended = True
            for process in self._processes:
                process.terminate()

    def _start(self) -> subprocess.Popen:
        with self._lock:
            if self._ended:
                raise InputError("interrupted")
            process = subprocess.Popen(
                [sys.executable, "-m", "ed_dpm_patches.reproduce.worker"],
                cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._processes.add(process)
        return process

    @staticmethod
    def _ask(worker: subprocess.Popen, request: dict) -> int | None:
        """The answer; None from a process that ends instead."""
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
        except BrokenPipeError:
            return None
        answer = worker.stdout.readline()
        return int(answer) if answer else None
