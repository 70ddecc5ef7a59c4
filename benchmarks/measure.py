"""Timing two implementations against each other, and the machine against itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, including what it started on the device; on a single CPU thread the processor time of
    this process, in which a busy machine's other work does not count."""
    single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if single else time.perf_counter
    synchronise(device)
    start = clock()
    work()
    synchronise(device)
    return clock() - start


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to finish; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    ours: Callable[[], float], upstream: Callable[[], float] | None, rounds: int, warmup: int = 2
) -> dict[str, float]:
    """Alternate two implementations and compare them round by round, so that a slow spell of the machine meets both.

    :param ours, upstream: do the work and return how long it took; without upstream, ours is measured alone.
    :return: median seconds of each ("ours_seconds", "peer_seconds"); median, 10 % and 90 % quantile of the ratio
        upstream / ours ("ratio", "ratio_p10", "ratio_p90"); "rounds". Which goes first changes from round to round.
    """
    calls = [ours] if upstream is None else [ours, upstream]
    for _ in range(warmup):
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    for i in range(rounds):
        for which in range(len(calls))[:: -1 if i % 2 else 1]:
            times[which].append(calls[which]())
    result = {"ours_seconds": statistics.median(times[0])}
    if upstream is not None:
        ratios = [other / own for own, other in zip(*times, strict=True)]
        deciles = statistics.quantiles(ratios, n=10, method="inclusive")
        result |= {
            "peer_seconds": statistics.median(times[1]),
            "ratio": statistics.median(ratios), "ratio_p10": deciles[0], "ratio_p90": deciles[-1],
        }  # fmt: skip
    return result | {"rounds": rounds}


def relative_difference(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest difference over the largest expected value."""
    found, expected = (torch.as_tensor(values).detach().float().cpu() for values in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


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
