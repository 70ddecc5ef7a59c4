"""Optimizer steps of the classifier and of the UNet beside upstream's, at 64x64."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.builders import SETTINGS, SMALLEST, Setting
from benchmarks.gpu.record import Context
from benchmarks.gpu.sampling import compare_step, implementations
from benchmarks.measure import relative_difference
from experiments.frontier.work import count_flops


def run(context: Context) -> None:
    """Measure both, in the batches that fit."""
    for batch in (2,) if context.tiny else (32, 8, 64):
        setting = SMALLEST if context.tiny else SETTINGS[f"published-64-b{batch}"]
        for kind in ("training", "diffusion_training"):
            name = f"{kind.replace('_', ' ')} {'tiny' if context.tiny else 'published-64'}-b{batch}"
            context.case(name, context.left() / 2, partial(measure, context, name, setting, kind))
            if torch.device(context.device).type == "cuda":
                torch.cuda.empty_cache()


def measure(context: Context, name: str, setting: Setting, kind: str) -> None:
    """One kind of step: the first losses compared, milliseconds, ratio, FLOPs."""
    pair = implementations(context, setting)
    ours, upstream = (one and next(iter(getattr(one, kind)().values())) for one in pair)
    row = {"batch": setting.batch_size}
    loss = ours()
    if upstream:
        row["loss_from_upstream"] = relative_difference(loss, upstream())
    row |= compare_step(context, ours, upstream, rounds=2 if context.tiny else 15)
    row |= {"steps_per_s": 1e3 / row["step_ms"], "tflop": count_flops(ours) / 1e12}
    if context.device.startswith("cuda"):
        row["peak_gib"] = torch.cuda.max_memory_allocated(context.device) / 2**30
    context.add(name, **row)
