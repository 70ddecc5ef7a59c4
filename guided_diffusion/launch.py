"""Which launcher started this process, and as which rank.

Only the environment is read: asking never starts MPI, never opens a socket and never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from guided_diffusion.errors import InputError

# Written by ``export``: says that RANK, WORLD_SIZE and so on come from a process of ours, not from torchrun.
MARK = "GUIDED_DIFFUSION_EXPORTED"
_MARKED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """A process's place among its peers: ``0 <= rank < world_size``; ``local_rank`` counts on one machine."""

    kind: str  # torchrun | mpi | slurm | single
    rank: int
    local_rank: int
    world_size: int


def detect() -> Launch:
    """The launch described by the environment.

    torchrun (RANK, WORLD_SIZE, LOCAL_RANK) is looked for first, then mpiexec (MPICH, Intel MPI, Open MPI),
    then a Slurm step of several tasks; otherwise this is a single process. Inside a Slurm step plain
    PMI_RANK counts as Slurm's, because srun sets it too.

    Raises ``InputError`` naming the variable if a value is not a number or out of range.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env and not exported_by_us(env):
        return _launch(env, "torchrun", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",))
    if "OMPI_COMM_WORLD_SIZE" in env:
        local = ("OMPI_COMM_WORLD_LOCAL_RANK",)
        return _launch(env, "mpi", ("OMPI_COMM_WORLD_RANK", "PMIX_RANK"), ("OMPI_COMM_WORLD_SIZE",), local)
    if "PMI_SIZE" in env and "MPI_LOCALRANKID" in env:
        return _launch(env, "mpi", ("PMI_RANK",), ("PMI_SIZE",), ("MPI_LOCALRANKID",))
    if "SLURM_PROCID" in env and _number(env, "SLURM_STEP_NUM_TASKS", default=1) > 1:
        return _launch(env, "slurm", ("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS",), ("SLURM_LOCALID",))
    if "PMI_SIZE" in env and "PMI_RANK" in env:
        return _launch(env, "mpi", ("PMI_RANK",), ("PMI_SIZE",), ())
    return Launch("single", 0, 0, 1)


def export(launch: Launch, address: str, port: int) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for code that reads them.

    Child processes inherit these variables. The mark set beside them lets ``detect`` in a child tell our
    copies from those of a launcher that the child itself was started with.
    """
    values = (launch.rank, launch.world_size, launch.local_rank, address, port)
    os.environ.update({name: str(value) for name, value in zip(_MARKED, values, strict=True)})
    os.environ[MARK] = _fingerprint(os.environ)


def exported_by_us(env: Mapping[str, str]) -> bool:
    """Whether RANK, MASTER_ADDR and so on hold what ``export`` wrote here or in a parent process."""
    return MARK in env and env[MARK] == _fingerprint(env)


def _fingerprint(env: Mapping[str, str]) -> str:
    return "|".join(env.get(name, "") for name in _MARKED)


def _launch(
    env: Mapping[str, str], kind: str, rank: tuple[str, ...], size: tuple[str, ...], local: tuple[str, ...]
) -> Launch:
    """Read one launcher's variables; each tuple lists names in order of preference."""
    rank_name = next((name for name in rank if name in env), rank[0])
    world_size = _number(env, size[0])
    if world_size < 1:
        raise InputError(f"environment variable {size[0]}: expected at least 1, found {world_size}")
    value = _number(env, rank_name)
    if value >= world_size:
        raise InputError(
            f"environment variable {rank_name}: expected less than {size[0]} = {world_size}, found {value}"
        )
    # A launcher that gives no local rank: right on one machine, and a harmless offset on several.
    local_rank = _number(env, local[0], default=value) if local else value
    return Launch(kind, value, local_rank, world_size)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None:
        if default is None:
            raise InputError(f"environment variable {name} is missing, though its companions are set")
        return default
    # str.isdigit accepts superscripts and other alphabets, int() accepts blanks and underscores: be strict.
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"environment variable {name}: expected a whole number, found {text!r}")
    return int(text)
