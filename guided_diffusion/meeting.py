"""How the ranks meet at the start, and how those that are there end when others do not come."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from guided_diffusion import processes
from guided_diffusion.errors import InputError
from guided_diffusion.launch import Launch, whole_number

DEFAULT = 60
_LOOK_UP = 5.0  # seconds that a name server has for its answer
HELP = "seconds to wait for ranks that do not come at the start; 0: no deadline"


def seconds_to_meet() -> int:
    """Return what the command line says, for those who cannot wait for it to be parsed."""
    found = re.findall("\0--meet_timeout[=\0]([^\0]*)", "\0".join(sys.argv)) or [str(DEFAULT)]
    if not re.fullmatch("[0-9]{1,9}", found[-1]):
        raise InputError(f"--meet_timeout: found {found[-1]!r}, expected a whole number of seconds (0: no deadline)")
    return int(found[-1])


def check_address(name: str) -> None:
    """InputError where the name of rank 0's machine means nothing here; connecting would try it for minutes."""
    found: list[Any] = []

    def look_up() -> None:
        until = time.monotonic() + _LOOK_UP
        while not found and time.monotonic() < until:
            try:
                found.extend(socket.getaddrinfo(name, None))
            except OSError:
                time.sleep(0.5)

    thread = threading.Thread(target=look_up, daemon=True)  # it may wait for a name server for longer
    thread.start()
    thread.join(_LOOK_UP + 1)
    if not found:
        raise InputError(
            f"MASTER_ADDR {name}: this name has no address here, expected that of rank 0's machine; on one machine "
            "start torchrun with --local_addr 127.0.0.1, on several name it with --rdzv_endpoint or --master_addr"
        )


def start_mpi(mpi: Any, here: Launch, end: Callable[[int], None]) -> None:
    """Call MPI_Init; if others do not come to it, say so and `end` this process with status 1.

    :param mpi: mpi4py's module, which would hold Python's lock in MPI_Init, so that no thread could keep the time.
    """
    seconds = DEFAULT
    with contextlib.suppress(InputError):  # refused in `meet`, when one rank can do it for all
        seconds = seconds_to_meet()
    with socket.socket(socket.AF_UNIX) as mark, _deadline(seconds, here, end, _leave_mark(mark, here)):
        library = ctypes.CDLL(mpi.__file__)  # and the MPI library that it is linked to
        library.MPI_Init_thread(None, None, mpi.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
    for comm in (mpi.COMM_SELF, mpi.COMM_WORLD):
        comm.Set_errhandler(mpi.ERRORS_RETURN)  # exceptions, as when mpi4py calls MPI_Init


def meet(open_store: Callable[[], dist.Store], here: Launch, end: Callable[[int], None]) -> dist.Store:
    """Return the store when all ranks have opened it; if others do not, say so and `end` this process."""
    missing = {0} - {here.rank}  # without the store nothing is known of the others
    seconds = seconds_to_meet()
    with _deadline(seconds, here, end, lambda: missing):
        store = open_store()
        missing = set(range(here.world_size)) - {here.rank}
        # Each counts until it has seen all others count: torchrun's store keeps the keys of earlier attempts.
        keys = [f"count/{rank}" for rank in range(here.world_size)]
        try:
            before = [store.add(key, 0) for key in keys]
            while missing:
                store.add(keys[here.rank], 1)
                time.sleep(0.05)
                now = [int(count) for count in store.multi_get(keys)]
                missing = {rank for rank in missing if now[rank] == before[rank]}
            store.add(keys[here.rank], 1)  # for those who first looked after the last time
        except dist.DistNetworkError:  # the rank that holds the store gave up a little before this one
            time.sleep(seconds)
            raise
    return store


@contextlib.contextmanager
def _deadline(
    seconds: int, here: Launch, end: Callable[[int], None], find_missing: Callable[[], set[int]]
) -> Iterator[None]:
    """Have the process ended, whatever it waits for, if it is too long in this block."""

    def give_up() -> None:
        ranks = ""
        with contextlib.suppress(Exception):  # whatever it is, this process has to end
            ranks = ", ".join(map(str, sorted(find_missing())))
        who = f"ranks {ranks} of {here.world_size} have" if "," in ranks else f"rank {ranks} of {here.world_size} has"
        line = f"{who if ranks else f'some of {here.world_size} ranks have'} not come within {seconds} s"
        with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
            sys.stderr.write(f"error: {line}: see above for the reason, or allow more time with --meet_timeout\n")
        time.sleep(1)  # until those that came just later than this rank have found it, too
        end(1)

    timer = threading.Timer(seconds or threading.TIMEOUT_MAX, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _leave_mark(mark: socket.socket, here: Launch) -> Callable[[], set[int]]:
    """Show the others on this machine that this rank has come; returns what finds those that have not.

    Before MPI_Init ranks share nothing, but in Linux a socket's name can be seen, and vanishes with the process. It
    holds the launcher's process: the nearest ancestor without the variable by which it tells how many it started.
    """
    name = "MPI_LOCALNRANKS" if "MPI_LOCALNRANKS" in os.environ else "OMPI_COMM_WORLD_LOCAL_SIZE"
    count, launcher = whole_number(name, default=0), os.getpid()
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
