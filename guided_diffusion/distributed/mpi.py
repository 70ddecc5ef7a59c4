"""MPI as mpiexec's ranks use it: to find each other at the start, and to sign off at the end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guided_diffusion.distributed import meeting
from guided_diffusion.errors import InputError
from guided_diffusion.system import launch, processes


def join(end: Callable[[int], None]) -> Any:
    """Return mpi4py's MPI module, started. Raises ``InputError`` where it is missing or of another MPI.

    :param end: ends this process with a status, waiting for nobody; for ranks that do not come, and after an uncaught
        exception in programs that do not use ``run_main``.
    """
    here = launch.detect()
    try:
        first = "mpi4py.MPI" not in sys.modules
        if first:
            import mpi4py

            mpi4py.rc.finalize = False  # its own exit hook would wait for ranks that failed
            mpi4py.rc.initialize = False
        from mpi4py import MPI

        if first:
            _start(MPI, here, end)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"started by mpiexec with {here.world_size} ranks, but mpi4py cannot be loaded "
            f"({str(error).splitlines()[0]}): install mpi4py, or start with torchrun"
        ) from error
    if first:
        atexit.register(lambda: end(1) if getattr(sys, "last_value", None) is not None else finalize())
    size = MPI.COMM_WORLD.Get_size()
    if size != here.world_size:
        raise InputError(
            f"mpiexec started {here.world_size} ranks, but mpi4py sees {size}: "
            "mpiexec and mpi4py belong to different MPI installations"
        )
    return MPI


def _start(mpi: Any, here: launch.Launch, end: Callable[[int], None]) -> None:
    """Call MPI_Init; if others do not come to it, say so and `end` this process with status 1.

    :param mpi: mpi4py's module, which would hold Python's lock in MPI_Init, so that no thread could keep the time.
    """
    seconds = meeting.DEFAULT
    with contextlib.suppress(InputError):  # refused in `meet`, when one rank can do it for all
        seconds = meeting.seconds_to_meet()
    with socket.socket(socket.AF_UNIX) as mark, meeting.deadline(seconds, here, end, _leave_mark(mark, here)):
        library = ctypes.CDLL(mpi.__file__)  # and the MPI library that it is linked to
        library.MPI_Init_thread(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    for comm in (mpi.COMM_SELF, mpi.COMM_WORLD):
        comm.Set_errhandler(mpi.ERRORS_RETURN)  # exceptions, as when mpi4py calls MPI_Init


def _leave_mark(mark: socket.socket, here: launch.Launch) -> Callable[[], set[int]]:
    """Show the others on this machine that this rank has come; returns what finds those that have not.

    Before MPI_Init ranks share nothing, but in Linux a socket's name can be seen, and vanishes with the process. It
    holds the launcher's process: the nearest ancestor without the variable by which it tells how many it started.
    """
    name = "MPI_LOCALNRANKS" if "MPI_LOCALNRANKS" in os.environ else "OMPI_COMM_WORLD_LOCAL_SIZE"
    count, launcher = launch.whole_number(name, default=0), os.getpid()
    try:
        while f"{name}={count}\0".encode() in Path(f"/proc/{launcher}/environ").read_bytes():
            launcher = int(Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
        prefix = f"ed-dpm/{processes.machine_digest()}/{launcher}/{processes.start_time(launcher)}/"
        mark.bind(f"\0{prefix}{here.rank}")
    except OSError:
        return set  # nothing is known
    everyone = range(count if count == here.world_size else 0)  # and nothing of the ranks of other machines
    names = Path("/proc/net/unix")
    return lambda: {rank for rank in everyone if f"@{prefix}{rank}\n" not in names.read_text(errors="replace")}


def to_sign_off_from() -> Any:
    """mpi4py's MPI module if it runs and was started here, else None.

    Started by someone else, mpi4py signs off by itself, and its user may not be done with it.
    """
    mpi4py, mpi = sys.modules.get("mpi4py"), sys.modules.get("mpi4py.MPI")
    if mpi is None or mpi4py.rc.finalize is not False:
        return None
    return mpi if mpi.Is_initialized() and not mpi.Is_finalized() else None


def finalize() -> None:
    """Sign off from MPI, without which mpiexec takes our exit for a crash; waits for the other ranks."""
    if mpi := to_sign_off_from():
        mpi.Finalize()
