"""Timing two implementations against each other, and the machine against itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, including what it started on the device; on a single CPU thread the time that this
    thread was given, in which a busy machine's other work does not count."""
    single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if single else time.perf_counter
    synchronise(device)
    start = clock()
    work()
    synchronise(device)
    return clock() - start


def synchronise(device: torch.device) -> None:
    """Wait for the device; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired(ours: Callable, theirs: Callable, device: torch.device, rounds: int) -> dict[str, float]:
    """`paired_seconds` of two pieces of work in this process."""
    return paired_seconds(lambda: seconds(ours, device), lambda: seconds(theirs, device), rounds)


def paired_seconds(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int, warmup: int = 2
) -> dict[str, float]:
    """Alternate the two and compare round by round, so that a slow spell of the machine meets both.

    :param ours, theirs: do the work and return how long it took.
    :return: median seconds of each; of the ratio theirs / ours the median and the 10 % and 90 % quantiles.
        Which of the two goes first changes from round to round.
    """
    for _ in range(warmup):
        ours(), theirs()
    times = []
    for i in range(rounds):
        if i % 2:
            peer = theirs()
            times.append((ours(), peer))
        else:
            times.append((ours(), theirs()))
    ratios = [peer / own for own, peer in times]
    deciles = statistics.quantiles(ratios, n=10, method="inclusive")
    return {
        "ours_seconds": statistics.median(own for own, _ in times),
        "peer_seconds": statistics.median(peer for _, peer in times),
        "ratio": statistics.median(ratios), "ratio_p10": deciles[0], "ratio_p90": deciles[-1],
        "rounds": rounds,
    }  # fmt: skip


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 5, tiny: bool = False) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a 3x3 convolution, the best of `repeats`; small ones if tiny."""
    n = 64 if tiny else 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    channels, side, batch = (16, 8, 2) if tiny else (128, 32, 16) if device.type == "cpu" else (512, 64, 32)
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    work = {
        "matmul": (lambda: a @ b, 2 * n**3),
        "convolution": (lambda: F.conv2d(x, w, padding=1), 2 * batch * side**2 * channels**2 * 9),
    }
    best = {}
    with torch.no_grad():
        for name, (call, flops) in work.items():
            call()
            best[name] = flops / min(seconds(call, device) for _ in range(repeats)) / 1e9
    return best
