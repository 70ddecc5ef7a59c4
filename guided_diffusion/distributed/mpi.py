"""MPI for ranks that mpiexec started: finding each other at the start, MPI_Finalize at the end."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import sys
from collections.abc import Callable
from typing import Any

from guided_diffusion.distributed import meeting
from guided_diffusion.errors import InputError
from guided_diffusion.system import launch


def join(end: Callable[[int], None]) -> Any:
    """Return mpi4py's MPI module, started.

    :param end: ends this process with a status, without waiting; for ranks that do not come, and after an uncaught
        exception in programs that do not use ``run_main``.
    :raises InputError: mpi4py is missing or belongs to another MPI.
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
    """Call MPI_Init; where other ranks do not come to it, say so and `end` this process with status 1.

    :param mpi: mpi4py's module, which would hold Python's lock in MPI_Init, so that no thread could keep the time.
    """
    seconds = meeting.DEFAULT
    with contextlib.suppress(InputError):  # refused in `meet`, when one rank can do it for all
        seconds = meeting.seconds_to_meet()
    with meeting.deadline(seconds, here, end, set()):  # before MPI_Init ranks know nothing of each other
        library = ctypes.CDLL(mpi.__file__)  # and the MPI library that it is linked to
        library.MPI_Init_thread(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    for comm in (mpi.COMM_SELF, mpi.COMM_WORLD):
        comm.Set_errhandler(mpi.ERRORS_RETURN)  # exceptions, as when mpi4py calls MPI_Init


def started_here() -> Any:
    """Return mpi4py's MPI module if it runs and was started here, else None.

    Started by someone else, mpi4py finalizes by itself, and its user may not be done with it.
    """
    mpi4py, mpi = sys.modules.get("mpi4py"), sys.modules.get("mpi4py.MPI")
    if mpi is None or mpi4py.rc.finalize is not False:
        return None
    return mpi if mpi.Is_initialized() and not mpi.Is_finalized() else None


def finalize() -> None:
    """Call MPI_Finalize, without which mpiexec takes our exit for a crash; waits for the other ranks."""
    if mpi := started_here():
        mpi.Finalize()
