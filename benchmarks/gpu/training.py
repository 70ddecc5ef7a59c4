"""Optimizer steps of the classifier and of the UNet beside upstream's, at 64x64."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.cases import SETTINGS, Pair, Setting
from benchmarks.gpu.record import Context
from benchmarks.gpu.sampling import find_peer, relative, tiny
from benchmarks.measure import paired, seconds
from benchmarks.sides import count_flops


def run(context: Context) -> None:
    """Measure both, in the batches that fit."""
    peer = find_peer()
    for batch in (2,) if context.tiny else (32, 8, 64):
        setting = tiny() if context.tiny else SETTINGS[f"published-64-b{batch}"]
        for kind in ("training", "diffusion_training"):
            name = f"{kind.replace('_', ' ')} {'tiny' if context.tiny else 'published-64'}-b{batch}"
            context.case(name, context.left() / 2, partial(measure, context, name, setting, peer, kind))
            if torch.device(context.device).type == "cuda":
                torch.cuda.empty_cache()


def measure(context: Context, name: str, setting: Setting, peer: object | None, kind: str) -> None:
    """One kind of step: the first losses compared, milliseconds, ratio, FLOPs."""
    device = torch.device(context.device)
    with torch.device(device):
        pair = Pair(setting, peer, device, half=not context.tiny)
    ((own, theirs),) = getattr(pair, kind)().values()
    rounds = 2 if context.tiny else 15
    loss = own()
    row = {"batch": setting.batch_size}
    if theirs is None:
        own()
        row["step_ms"] = 1e3 * sorted(seconds(own, device) for _ in range(rounds))[rounds // 2]
    else:
        row["loss_from_upstream"] = relative(loss, theirs())
        found = paired(own, theirs, device, rounds)
        row |= {"step_ms": 1e3 * found["ours_seconds"], "upstream_step_ms": 1e3 * found["peer_seconds"]}
        row |= {key: found[key] for key in ("ratio", "ratio_p10", "ratio_p90")}
    row |= {"steps_per_s": 1e3 / row["step_ms"], "tflop": count_flops(own) / 1e12}
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    context.add(name, **row)
