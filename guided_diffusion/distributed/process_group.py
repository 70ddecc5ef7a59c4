"""The process group, which works alike under torchrun, mpiexec, Slurm's srun and as a single process.

A single process needs no network. Under srun pass ``--kill-on-bad-exit=1``, because Slurm by default lets the other
tasks run on when one fails.
"""

from __future__ import annotations

import os
import secrets
import socket

import torch
import torch.distributed as dist

from guided_diffusion.distributed import meeting, shutdown
from guided_diffusion.distributed.collectives import barrier, broadcast_object, dev
from guided_diffusion.distributed.rendezvous import TIMEOUT, open_store
from guided_diffusion.system import launch


def setup_dist() -> None:
    """Join the process group; does nothing if there is one already.

    The backend is NCCL where every rank has a GPU of its own and Gloo otherwise (no GPU, or GPUs shared by
    several ranks, which NCCL refuses). CUDA_VISIBLE_DEVICES is unchanged. RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT are set unless the launcher did.

    Raises ``InputError`` if the launcher's variables are malformed or MPI cannot be used. Where ranks do not come in
    time, the process ends with status 1, see ``meeting``.
    """
    if dist.is_initialized():
        return
    here = launch.detect()
    store = meeting.meet(lambda: open_store(here, shutdown.leave_hard), here, shutdown.leave_hard)
    machines = _publish(store, here, "machine", socket.gethostname())
    gpus = _publish(store, here, "gpu", _gpu_identity(here))
    backend = "nccl" if "" not in gpus and len(set(gpus)) == len(gpus) else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(dev())
    else:
        _share_cores(machines.count(machines[here.rank]))
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size, timeout=TIMEOUT)
    barrier()  # a rank that fails at once must not leave the others in the middle of connecting
    if shutdown.heart is not None and here.world_size > 1:
        # A name of its own, because torchrun's store keeps the keys of earlier attempts.
        name = broadcast_object(f"heartbeat/{secrets.token_hex(8)}")
        shutdown.heart.start(dist.PrefixStore(name, store.clone()), here.rank, here.world_size)


def _publish(store: dist.Store, here: launch.Launch, topic: str, value: str) -> list[str]:
    """Give ``value`` to the other ranks and return the values of all, by rank."""
    store.set(f"{topic}/{here.rank}", value)
    return [store.get(f"{topic}/{rank}").decode() for rank in range(here.world_size)]


def _gpu_identity(here: launch.Launch) -> str:
    """Return a name for this rank's GPU that no other GPU has; empty without a GPU."""
    if not torch.cuda.is_available():
        return ""
    device = dev()
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", device.index)
    return f"{socket.gethostname()}/{uuid}"


def _share_cores(local_ranks: int) -> None:
    """Divide this machine's cores among its ranks, unless OMP_NUM_THREADS is set."""
    if local_ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        share = max(1, (os.cpu_count() or 1) // local_ranks)
        torch.set_num_threads(min(share, torch.get_num_threads()))
