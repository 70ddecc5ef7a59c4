"""The key-value store through which the ranks find each other, under every launcher."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from guided_diffusion.distributed import mpi
from guided_diffusion.errors import InputError
from guided_diffusion.system import launch

TIMEOUT = timedelta(minutes=30)  # how long a rank waits for the others in any one collective
_LOOK_UP = 5.0  # seconds in which a name is looked up again


def open_store(here: launch.Launch, end: Callable[[int], None]) -> dist.Store:
    """Return the store when it can be reached; `end`: see `mpi.join`.

    Raises ``InputError`` if the launcher's variables are malformed or MPI cannot be used.
    """
    if here.kind == "torchrun":
        launch.whole_number("MASTER_PORT", default=0)
        _check_address(os.environ.get("MASTER_ADDR", "localhost"))
        try:
            return next(rendezvous("env://", here.rank, here.world_size, timeout=TIMEOUT))[0]
        except ValueError as error:  # MASTER_ADDR or MASTER_PORT missing or malformed
            raise InputError(f"RANK and WORLD_SIZE are set, but: {error}") from error
    if here.world_size == 1:
        launch.export(here, "127.0.0.1", 0)
        return dist.HashStore()
    if here.kind == "mpi":
        return _open_store_through_mpi(here, end)
    return _open_store_through_slurm(here)


def _open_store_through_mpi(here: launch.Launch, end: Callable[[int], None]) -> dist.Store:
    """Open the store on a port that the system picks, which rank 0 broadcasts through MPI."""
    comm = mpi.join(end).COMM_WORLD
    machines = comm.allgather(socket.gethostname())
    store, place = None, None
    if here.rank == 0:
        address = "127.0.0.1" if len(set(machines)) == 1 else _own_address()
        store = _listen(address, 0, here.world_size)
        place = (address, store.port)
    address, port = comm.bcast(place, root=0)
    launch.export(here, address, port)
    return store or dist.TCPStore(address, port, here.world_size, is_master=False, timeout=TIMEOUT)


def _open_store_through_slurm(here: launch.Launch) -> dist.Store:
    """Open the store on the step's first machine, at a port that every rank can compute."""
    ours = launch.exported_by_us()
    given = {} if ours else os.environ
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    address = given.get("MASTER_ADDR") or first_host(hosts)
    if not address:
        raise InputError("Slurm gives no SLURM_STEP_NODELIST: set MASTER_ADDR to the first machine's name")
    port = given.get("MASTER_PORT") or str(slurm_port())
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"environment variable MASTER_PORT: expected 1 to 65535, found {port!r}")
    launch.export(here, address, int(port))
    if here.rank == 0:
        return _listen(address, int(port), here.world_size)
    return dist.TCPStore(address, int(port), here.world_size, is_master=False, timeout=TIMEOUT)


def _listen(address: str, port: int, world_size: int) -> dist.TCPStore:
    return dist.TCPStore(address, port, world_size, is_master=True, timeout=TIMEOUT, wait_for_workers=False)


def _check_address(name: str) -> None:
    """Raise an InputError where the name of rank 0's machine has no address; connecting would retry for minutes."""
    until = time.monotonic() + _LOOK_UP
    while time.monotonic() < until:
        try:
            socket.getaddrinfo(name, None)
            return
        except OSError:
            time.sleep(0.5)
    raise InputError(
        f"MASTER_ADDR {name}: this name has no address here, expected that of rank 0's machine; on one machine "
        "start torchrun with --local_addr 127.0.0.1, on several name it with --rdzv_endpoint or --master_addr"
    )


def _own_address() -> str:
    """Return the address under which other machines reach this one."""
    if not launch.exported_by_us() and os.environ.get("MASTER_ADDR"):
        return os.environ["MASTER_ADDR"]
    name = socket.getfqdn()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise InputError(f"host name {name} has no address ({error}): set MASTER_ADDR") from error
    if address.startswith("127."):
        raise InputError(f"host name {name} means {address}, useless to other machines: set MASTER_ADDR")
    return address


def first_host(nodelist: str) -> str:
    """Return the first name in Slurm's notation: ``gpu[07-12,20]`` and ``gpu07,gpu20`` both give ``gpu07``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def slurm_port() -> int:
    """Return a port in 20000..59999 that differs between the jobs and steps of one machine."""
    job, step = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    digits = [int(text) if text.isdigit() else 0 for text in (job, step)]
    return 20000 + (digits[0] * 37 + digits[1]) % 40000
