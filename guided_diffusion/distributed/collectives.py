"""The rank, world size and device of this process, and its collective operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

from guided_diffusion.errors import InputError
from guided_diffusion.system import launch

_ALL_GPUS = 8
# Upstream's hook: a program that sets another number uses so many of a machine's GPUs at most.
GPUS_PER_NODE = _ALL_GPUS


def dev() -> torch.device:
    """Return the GPU of this local rank (ranks take the visible GPUs in turn), or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if GPUS_PER_NODE != _ALL_GPUS:
        gpus = min(gpus, GPUS_PER_NODE)
    return torch.device("cuda", launch.detect().local_rank % gpus)


def get_rank() -> int:
    """Return this process's rank; before ``setup_dist`` that which the launcher's variables give."""
    return dist.get_rank() if dist.is_initialized() else launch.detect().rank


def get_world_size() -> int:
    """Return the number of processes; before ``setup_dist`` that which the launcher's variables give."""
    return dist.get_world_size() if dist.is_initialized() else launch.detect().world_size


def barrier() -> None:
    """Wait for all ranks; return at once without a process group."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value, which must be picklable, on every rank. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_rank_0(call: Callable[[], Any]) -> Any:
    """Return on every rank what rank 0 gets from a call that only it makes. A collective.

    :raises InputError: on every rank, where the call raises one.
    """
    found = None
    if get_rank() == 0:
        try:
            found = call()
        except InputError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, InputError):
        raise found
    return found


def sync_params(params: Iterable[torch.Tensor]) -> None:
    """Overwrite each tensor with rank 0's values, in place and without a gradient."""
    if get_world_size() == 1 or not dist.is_initialized():
        return
    with torch.no_grad():
        pending = [dist.broadcast(tensor, src=0, async_op=True) for tensor in params]
        for work in pending:
            work.wait()
