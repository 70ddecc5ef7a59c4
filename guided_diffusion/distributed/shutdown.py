"""The end of a program: the user and the other ranks are told, and no rank is left hanging."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.distributed as dist

from guided_diffusion.distributed import mpi
from guided_diffusion.distributed.collectives import barrier, get_rank, get_world_size
from guided_diffusion.distributed.watchdog import Heartbeat
from guided_diffusion.errors import InputError, Stopped, Terminated, first_line
from guided_diffusion.runs import failure_log, run_directory
from guided_diffusion.system import launch, streams

_LEAD = 30.0  # the most seconds between two ranks' reading of their command lines

heart: Heartbeat | None = None  # in programs that `run_main` runs, which knows when a rank is done


def run_main(main: Callable[[], None]) -> NoReturn:
    """Run a program's ``main`` and end the process so that no other rank is left hanging.

    ``InputError``, and an ``OSError`` such as of a full disk: its line on stderr, exit status 2. Ctrl-C: 130.
    ``Terminated``: 143. ``SystemExit``: its own status; ``Stopped``: the same, and all ranks end as after success. Any
    other exception: the traceback, 1. After a failure among several ranks the process ends without the interpreter's
    clean-up, which could block in MPI; the launcher then ends the other ranks. Ranks that it does not reach (frozen, or
    on other machines) end by themselves: see ``watchdog``, and ``meeting`` for the time before all have joined.
    """
    global heart
    streams.protect()
    heart = Heartbeat(leave_hard)
    try:
        if launch.detect().kind == "mpi" and launch.detect().world_size > 1:
            # Before setup_dist: mpiexec does not notice a rank that dies before it joined MPI, and the others would
            # wait for it until the deadline.
            mpi.join(leave_hard)
        main()
        _leave()
    except BaseException as error:  # noqa: BLE001 - after any error the other ranks must not be left waiting
        status = report_failure(error)
        if status == 0 or isinstance(error, Stopped):
            _leave()
        elif _is_one_of_several():
            heart.tell(status, _first_line_of(error))
            leave_hard(status)
        run_directory.release()
        sys.exit(status)
    sys.exit(0)


def fail(line: str) -> NoReturn:
    """End this process with an error from a thread that is not the main one; other ranks are told."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"error: {line}\n")
    if heart is not None:
        heart.tell(2, line)
    leave_hard(2)


def report_failure(error: BaseException) -> int:
    """Report an exception to the user and the log; return the exit status for it."""
    if isinstance(error, Stopped):
        failure_log.keep_failure(error.line, state="stopped")
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")
        return 1
    if isinstance(error, KeyboardInterrupt):
        terminated = isinstance(error, Terminated)
        failure_log.keep_failure("terminated" if terminated else "interrupted", state="stopped")
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    line = _line_for_user(error)
    details = "" if isinstance(error, InputError) else "".join(traceback.format_exception(error))
    failure_log.keep_failure(_first_line_of(error) if line is None else line, details, consequence=_lost_a_rank(error))
    if _is_one_of_several() and _is_reported_elsewhere(error):
        # Meanwhile the rank that reports it ends, and the launcher or the watchdog ends this one.
        time.sleep(5 if _lost_a_rank(error) and heart.beating else 1)
    sys.stderr.write(details if line is None else f"error: {line}\n")  # one write: ranks do not interleave
    return 1 if line is None else 2


def waited_for_rank_0() -> bool:
    """Wait for rank 0 to report an error in a command line that all ranks have.

    A launcher ends all ranks when one has failed; if this rank failed while rank 0 still loads, nothing would be
    reported. Returns whether this rank was not ended while it waited; False at once without such a launcher.
    """
    waits = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ or mpi.started_here()
    if waits:
        time.sleep(_LEAD)
    return bool(waits)


def _line_for_user(error: BaseException) -> str | None:
    """Return the line for bad input, a refusal of the system or too little memory; None for errors with a traceback."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part is not None)
    text = first_line(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in text:
        return None
    place = "GPU" if isinstance(error, torch.OutOfMemoryError) else "main"
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    wanted = f" (for {asked[1]} more)" if asked else ""
    return (
        f"out of {place} memory{wanted}: lower --batch_size, or --microbatch in training; what is finished is kept, "
        "and the same --log_dir resumes from there"
    )


def _first_line_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _is_reported_elsewhere(error: BaseException) -> bool:
    """Return whether another rank probably reports this failure, or the one that it follows from."""
    if isinstance(error, InputError):
        return get_rank() > 0  # bad input mostly concerns all ranks: rank 0 reports it
    return _lost_a_rank(error)


def _lost_a_rank(error: BaseException) -> bool:
    """Return whether a collective failed because another rank, or the connection to it, is gone."""
    if isinstance(error, dist.DistError):
        return dist.is_initialized()  # before that it may as well be this rank's own address or port
    return isinstance(error, RuntimeError) and "/gloo/transport/" in str(error)  # Gloo's failures have no type


def _is_one_of_several() -> bool:
    try:
        return get_world_size() > 1
    except InputError:
        return False


def _leave() -> None:
    """Leave the process group after success: no rank ends before all have come here."""
    run_directory.release()
    if dist.is_initialized():
        barrier()
        if heart is not None:
            heart.stop()
        dist.destroy_process_group()
    mpi.finalize()


def leave_hard(status: int) -> NoReturn:
    """End the process now. Buffers are flushed; nothing that could wait for another rank is run."""
    # When the watchdog calls, the main thread may hold a lock that flushing needs, or be inside MPI.
    last_resort = threading.Timer(5, os._exit, (status,))
    last_resort.daemon = True
    last_resort.start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when a data worker dies
    for child in multiprocessing.active_children():  # data workers would hold on to our output pipes
        child.kill()
    run_directory.release()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
            stream.flush()
    if running := mpi.started_here():
        # Unlike a bare exit this passes the status on reliably, and mpiexec does not wait for pipes that
        # other ranks' data workers still hold. MPI's own messages about it are of no use.
        time.sleep(0.3)  # mpiexec drops output that it has not yet passed on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        running.COMM_WORLD.Abort(status)
    os._exit(status)
