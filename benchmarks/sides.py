"""Ours and the peer's half of the work, each in a process of its own on CPUs, whose memory it has to itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import SETTINGS, Pair
from benchmarks.measure import seconds
from benchmarks.upstream import load_peer
from guided_diffusion.system.malloc import keep_freed_memory

OURS, PEER = 0, 1


@dataclass(frozen=True)
class Work:
    """What is measured: the parts of a kind ("sampling", "training") of work in one of `cases.SETTINGS`."""

    kind: str
    config: str
    device: str
    half: bool
    compile: bool
    threads: int


class Side:
    """One implementation's half of the work. Both sides build the same networks from the same seed."""

    def __init__(self, work: Work, side: int):
        if work.threads:
            torch.set_num_threads(work.threads)
        self._device = torch.device(work.device)
        pair = Pair(SETTINGS[work.config], load_peer(), self._device, work.half, work.compile)
        self._parts = {name: both[side] for name, both in getattr(pair, work.kind)().items()}

    def names(self) -> list[str]:
        """Of the parts."""
        return list(self._parts)

    def output(self, part: str) -> Tensor:
        """What a part computes, float32 on the CPU."""
        return self._parts[part]().float().cpu()

    def seconds(self, part: str) -> float:
        """How long it takes."""
        return seconds(self._parts[part], self._device)

    def flops(self, part: str) -> int:
        """Multiplications and additions of one call, backward included; without those of fused attention on a CPU,
        which PyTorch's counter does not know."""
        return count_flops(self._parts[part])


def count_flops(work: Callable[[], object]) -> int:
    """Multiplications and additions that PyTorch's counter finds in a call."""
    counter = FlopCounterMode(display=False)
    # Per-module counts need hooks that autograd.grad does not allow; the total does not.
    counter.mod_tracker = _WholeProgram()
    with counter:
        work()
    return counter.get_total_flops()


class SideElsewhere:
    """A `Side` in another process, with the same methods; a context manager, which ends it."""

    def __init__(self, work: Work, side: int):
        context = multiprocessing.get_context("spawn")
        self._calls, calls = context.Pipe()
        self._process = context.Process(target=_serve, args=(calls, work, side), daemon=True)
        self._process.start()
        calls.close()

    def __enter__(self) -> SideElsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.close()
        self._process.join()

    def names(self) -> list[str]:
        return self._ask("names")

    def output(self, part: str) -> Tensor:
        return torch.from_numpy(self._ask("output", part))

    def seconds(self, part: str) -> float:
        return self._ask("seconds", part)

    def flops(self, part: str) -> int:
        return self._ask("flops", part)

    def _ask(self, method: str, *args: str) -> Any:
        try:
            self._calls.send((method, args))
            return self._calls.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"the process of one side ended with {self._process.exitcode}, see above") from None


def _serve(calls: Any, work: Work, side: int) -> None:
    if side == OURS:
        keep_freed_memory()  # as our programs do; the peer's leave the C library as it is
    here = Side(work, side)
    while True:
        try:
            method, args = calls.recv()
        except EOFError:
            return
        result = getattr(here, method)(*args)
        calls.send(result.numpy() if isinstance(result, Tensor) else result)


class _WholeProgram:
    """Stands in for the counter's module tracker: everything belongs to one module."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
