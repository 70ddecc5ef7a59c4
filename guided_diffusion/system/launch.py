"""The launcher that started this process, and the process's rank, read from the environment alone.

Nothing here starts MPI, opens a socket or imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from guided_diffusion.errors import InputError

# Set by ``export``: RANK, WORLD_SIZE and so on come from this package, not from torchrun.
MARK = "GUIDED_DIFFUSION_EXPORTED"
_MARKED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """The rank of a process, ``0 <= rank < world_size``; ``local_rank`` counts on one machine."""

    kind: str  # torchrun | mpi | slurm | single
    rank: int
    local_rank: int
    world_size: int


def detect() -> Launch:
    """Return the launch that the environment describes.

    torchrun (RANK, WORLD_SIZE, LOCAL_RANK) is looked for first, then mpiexec (MPICH, Intel MPI, Open MPI),
    then a Slurm step of several tasks; otherwise this is a single process. Inside a Slurm step plain
    PMI_RANK counts as Slurm's, because srun sets it too.

    Raises ``InputError`` naming the variable if a value is not a number or out of range.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env and not exported_by_us():
        return _launch("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "OMPI_COMM_WORLD_SIZE" in env:
        rank_name = "OMPI_COMM_WORLD_RANK" if "OMPI_COMM_WORLD_RANK" in env else "PMIX_RANK"
        return _launch("mpi", rank_name, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    if "PMI_SIZE" in env and "MPI_LOCALRANKID" in env:
        return _launch("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
    if "SLURM_PROCID" in env and whole_number("SLURM_STEP_NUM_TASKS", default=1) > 1:
        return _launch("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if "PMI_SIZE" in env and "PMI_RANK" in env:
        return _launch("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
    return Launch("single", 0, 0, 1)


def export(launch: Launch, address: str, port: int) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for code that reads them.

    Child processes inherit these variables. By the mark set beside them ``detect`` in a child tells them from those of
    a launcher that started the child itself.
    """
    values = (launch.rank, launch.world_size, launch.local_rank, address, port)
    os.environ.update({name: str(value) for name, value in zip(_MARKED, values, strict=True)})
    os.environ[MARK] = _fingerprint()


def exported_by_us() -> bool:
    """Return whether RANK, MASTER_ADDR and so on are as ``export`` set them here or in a parent process."""
    return os.environ.get(MARK) == _fingerprint()


def _fingerprint() -> str:
    return "|".join(os.environ.get(name, "") for name in _MARKED)


def _launch(kind: str, rank_name: str, size_name: str, local_name: str) -> Launch:
    """Read and check one launcher's variables."""
    world_size, rank = whole_number(size_name), whole_number(rank_name)
    if world_size < 1:
        raise InputError(f"environment variable {size_name}: expected at least 1, found {world_size}")
    if rank >= world_size:
        raise InputError(
            f"environment variable {rank_name}: expected less than {size_name} = {world_size}, found {rank}"
        )
    # Where the launcher gives no local rank, the rank is right on one machine and harmless on several.
    return Launch(kind, rank, whole_number(local_name, default=rank), world_size)


def whole_number(name: str, default: int | None = None) -> int:
    """Return an environment variable's value; ``InputError`` naming it if it is missing or no number."""
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise InputError(f"environment variable {name} is missing, though its companions are set")
        return default
    # str.isdigit accepts superscripts and other alphabets, int() accepts blanks and underscores: be strict.
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"environment variable {name}: expected a whole number, found {text!r}")
    return int(text)
