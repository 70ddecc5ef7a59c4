"""A process that runs programs of the repository one after the other: imported once, and networks compiled once.

    python -m ed_dpm_patches.reproduce.worker

A request is a line of JSON on stdin, {"command": ["scripts/classifier_sample.py", ...], "log": FILE}: the command
without `python`, and the file for all that it prints. The answer is a line on stdout, its exit status. After a failure
that is not the input's the process ends: who knows what it left behind.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import IO

from guided_diffusion import dist_util, logger, run_directory
from guided_diffusion.kept_networks import KeptNetworks

from .workers import ENDING


class Programs:
    """The `main` of programs by their paths, called with the networks that they share where they take some."""

    def __init__(self) -> None:
        self._mains: dict[str, Callable[[], None]] = {}
        self._kept = KeptNetworks()

    def run(self, program: str, arguments: list[str]) -> int:
        """The exit status; what is wrong goes to stderr."""
        sys.argv = [program, *arguments]
        logger.reset()  # what fails before it has a directory must not be noted in that of the run before
        try:
            if program not in self._mains:
                main = runpy.run_path(program, run_name=os.path.basename(program))["main"]
                takes_networks = "kept" in inspect.signature(main).parameters
                self._mains[program] = (lambda: main(kept=self._kept)) if takes_networks else main
            self._mains[program]()
        except (Exception, SystemExit) as error:
            return dist_util.report_failure(error)
        finally:
            run_directory.release()
        return 0


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Do what is asked until there are no more requests, or a program fails for other reasons than its input."""
    programs = Programs()
    for line in requests:
        request = json.loads(line)
        _print_to(request["log"])
        program, *arguments = request["command"]
        status = programs.run(program, arguments)
        print(status, file=answers, flush=True)
        if status == ENDING:
            return


def _print_to(log: str) -> None:
    """From now on this process's output goes to a file, also that of libraries not written in Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    os.close(target)


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:  # the programs' own stdout goes to their logs
        serve(sys.stdin, answers)


if __name__ == "__main__":
    dist_util.run_main(main)
