"""The group of this program's processes: rank, device, and what all of them do together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

from guided_diffusion.errors import InputError
from guided_diffusion.system import launch


def dev() -> torch.device:
    """The GPU of this local rank (the visible GPUs are dealt out in turn), or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", launch.detect().local_rank % torch.cuda.device_count())


def get_rank() -> int:
    """This process's rank; the launcher's word for it before ``setup_dist``."""
    return dist.get_rank() if dist.is_initialized() else launch.detect().rank


def get_world_size() -> int:
    """The number of processes; the launcher's word for it before ``setup_dist``."""
    return dist.get_world_size() if dist.is_initialized() else launch.detect().world_size


def barrier() -> None:
    """Wait for all ranks; nothing to wait for without a process group."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        on_gpu = dist.get_backend() == "nccl"
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank; it must be picklable. A collective; nothing to do without a process group."""
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
