"""python book_program.py ARGUMENTS...: `ed-dpm`, whose steps are forked from it in place of started: 0.2 s each, not 5.

They stay in its process group, so that what kills the group kills them as well; its `Watch` does not see their files.
"""

from __future__ import annotations

import concurrent.futures.thread
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults import points
from tests.support.fork_server import become

_START = subprocess.Popen


class ForkedProcess:
    """What `ed-dpm` needs of `Popen` for a Python program: its output, its status, its end."""

    def __init__(self, words: Sequence[str], cwd: Path, environment: dict[str, str]):
        reading, writing = os.pipe()
        request = {"program": str(Path(cwd) / words[0]), "argv": list(words[1:]), "cwd": str(cwd)}
        self.pid, self._status = os.fork(), None
        if self.pid == 0:
            points.suspend()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            concurrent.futures.thread._threads_queues.clear()  # else the end would wait for this very thread
            os.close(reading)
            become(request, environment, [f"/dev/fd/{writing}"] * 2, session=False)
        os.close(writing)
        self.stdout = open(reading, "rb")  # noqa: SIM115

    def wait(self) -> int:
        """Return the exit status, as soon as there is one."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def terminate(self) -> None:
        """Send SIGTERM to a process that has not been waited for."""
        if self._status is None:
            os.kill(self.pid, signal.SIGTERM)


def start(command: Sequence[str], *rest, **options):
    """`subprocess.Popen`, but for programs of the repository in one process."""
    words = list(command[3:] if list(command[:3]) == ["mpiexec", "-n", "1"] else command)
    if words[0] == "python" and words[1].endswith(".py"):
        return ForkedProcess(words[1:], options["cwd"], options["env"])
    return _START(command, *rest, **options)


if __name__ == "__main__":
    from experiments import cli, spec_files

    subprocess.Popen = start
    spec_files.PROGRAMS["data"]["tests/faults/book/data.py"] = ()
    sys.argv[0] = "ed-dpm"
    cli.run()
