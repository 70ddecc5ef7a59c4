"""Runs programs in processes forked from one that has PyTorch loaded: a start takes 0.1 s instead of 3.

A request is a line of JSON on stdin: program, argv, cwd, environments (one process for each), outputs (a
file for each process's stdout, one for its stderr), timeout in seconds. The answer is the list of exit
statuses, null for a process that had to be killed. What is forked then is an ordinary process: its own
environment, argv, files, exit hooks and exit status.
"""

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import numpy  # noqa: F401
import PIL.Image  # noqa: F401
import torch
import torch._dynamo  # noqa: F401  torch.optim loads it when first used

import ed_dpm_patches.trace  # noqa: F401
import guided_diffusion.sampling.run  # noqa: F401
import guided_diffusion.sampling.setup  # noqa: F401
import guided_diffusion.script_util  # noqa: F401
import guided_diffusion.training.classifier_loop  # noqa: F401
import guided_diffusion.training.setup  # noqa: F401


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for environment, outputs in zip(request["environments"], request["outputs"], strict=True):
            pid = os.fork()
            if pid == 0:
                become(request, environment, outputs)
            children.append(pid)
        print(json.dumps(wait(children, request["timeout"])), flush=True)


def become(
    request: dict,
    environment: dict[str, str],
    outputs: list[str],
    before: Callable[[], object] | None = None,
    session: bool = True,
) -> NoReturn:
    """Turn this forked process into a fresh run of the program, and end with it.

    :param before: called just before the program; session: whether it begins a process group of its own.
    """
    if session:
        os.setsid()
    for descriptor, path in zip((0, 1, 2), (os.devnull, *outputs), strict=True):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(request["cwd"])
    sys.argv = [request["program"], *request["argv"]]
    sys.path[0] = os.path.dirname(request["program"])
    status = 0
    try:
        if before is not None:
            before()
        runpy.run_path(request["program"], run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking the interpreter apart would take most of a run's time


def wait(children: list[int], timeout: float) -> list[int | None]:
    deadline = time.monotonic() + timeout
    statuses: dict[int, int | None] = {}
    while len(statuses) < len(children):
        for pid in set(children) - set(statuses):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)  # data workers with it
                os.waitpid(pid, 0)
                statuses[pid] = None
        time.sleep(0.01)
    return [statuses[pid] for pid in children]


if __name__ == "__main__":
    main()
