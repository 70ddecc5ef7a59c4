"""A guided DDIM step beside upstream's in its half precision, as it is and compiled; the most wanted cases first."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.builders import SETTINGS, SMALLEST, Setting
from benchmarks.gpu.record import Context, read_rows
from benchmarks.implementations import Implementation, Parts
from benchmarks.measure import compare, relative_difference, seconds
from benchmarks.upstream import UpstreamUnavailable, load_upstream
from experiments.frontier.work import count_flops
from guided_diffusion.models import compiling
from guided_diffusion.models.attention import AttentionBlock
from guided_diffusion.models.blocks import ResBlock

STEPS = 25
REGIONAL, WHOLE = "regional", "whole"
# Name, compiled too; what a case leaves of its time goes to those after it.
CASES = (
    ("published-64-b8", True), ("published-256-b8", False), ("published-256-b32", True), ("published-64-b32", True),
    ("published-128-b8", False), ("published-256-uncond-b8", False), ("published-64-b1", False),
    ("published-256-b1", False), ("published-128-b32", False), ("published-256-uncond-b32", False),
    ("published-64-b64", False), ("published-256-b64", False), ("published-128-b1", False),
    ("published-128-b64", False), ("published-256-uncond-b1", False), ("published-256-uncond-b64", False),
)  # fmt: skip


def run(context: Context) -> None:
    """Measure case after case."""
    cases = (("tiny", True),) if context.tiny else CASES
    for i, (name, compile) in enumerate(cases):
        weights = [3 if compiled else 1 for _, compiled in cases[i:]]
        setting = SMALLEST if context.tiny else SETTINGS[name]
        limit = max(20.0, 2 * context.left() * weights[0] / sum(weights))
        context.case(name, limit, partial(measure, context, name, setting, compile))
        gc.collect()
        torch.compiler.reset()
        if torch.device(context.device).type == "cuda":
            torch.cuda.empty_cache()


def find_upstream() -> SimpleNamespace | None:
    """Upstream's modules; None where there are none, which the command has said already."""
    try:
        return load_upstream()
    except UpstreamUnavailable:
        return None


def implementations(context: Context, setting: Setting) -> tuple[Implementation, Implementation | None]:
    """Ours and upstream's, None where there is none; in half precision, but for tiny ones."""
    device, half, upstream = torch.device(context.device), not context.tiny, find_upstream()
    ours = Implementation(setting, device, half)
    return ours, upstream and Implementation(setting, device, half, upstream)


def measure(context: Context, name: str, setting: Setting, compile: bool) -> None:
    """One case: outputs compared, the parts' times, a whole loop, and the same compiled."""
    device = torch.device(context.device)
    exact = outputs(Implementation(setting, device).sampling())  # in float32
    ours, upstream = implementations(context, setting)
    parts, upstream_parts = ours.sampling(), upstream.sampling() if upstream else {}
    floors = floor(context, ours, parts)
    row = {"peak_gib": None} | times(context, parts, upstream_parts) | differences(parts, upstream_parts, exact)
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    add(context, name, row, floors, setting)
    step = parts["guided step"]
    start = time.perf_counter()
    seconds(lambda: [step() for _ in range(STEPS)], device)
    context.add(f"{name} {STEPS} steps run", images_per_s=setting.batch_size / (time.perf_counter() - start))
    if not compile:
        return
    eager = step()
    for way in ways_to_compile(context):
        said: list[str] = []  # where compiling failed or changed the numbers, and the network is kept as it is
        warnings = mock.patch.object(compiling.logger, "warning", said.append)
        with warnings, compiled(ours, way, context.tiny) as parts:
            start = time.perf_counter()
            found = {part: call() for part, call in parts.items()}
            seconds_compiling = time.perf_counter() - start
            row = times(context, parts, upstream_parts)
            row |= {"compile_s": seconds_compiling, "from_eager": relative_difference(found["guided step"], eager)}
            if said:
                row["error"] = " ".join(said)
            add(context, f"{name} {way}", row, floors, setting)


def add(context: Context, name: str, row: dict, floors: dict, setting: Setting) -> None:
    """Add a case's row, with images a second and the shares of the ceiling and of the floor."""
    step = row["step_ms"] / 1e3
    row |= {"images_per_s": setting.batch_size / (STEPS * step), **floors}
    if floors.get("floor_ms"):
        row["of_ceiling"] = floors["tflop"] / floors["ceiling_tflops"] / step
    context.add(name, **row)


def times(context: Context, parts: Parts, upstream_parts: Parts) -> dict[str, float]:
    """Milliseconds of the step and its parts, upstream's, and the ratio with its 10 and 90 % quantiles."""
    rounds = 2 if context.tiny else 10
    names = ("guided step", "UNet", "classifier forward", "guidance")
    found = [compare_step(context, parts[name], upstream_parts.get(name), rounds) for name in names]
    result = {key: value for key, value in found[0].items() if key.startswith("ratio")}
    for prefix in ("", "upstream_") if upstream_parts else ("",):
        step, unet, forward, guidance = (row[f"{prefix}step_ms"] for row in found)
        split = {"step": step, "unet": unet, "forward": forward, "backward": guidance - forward}
        split["rest"] = step - unet - guidance
        result |= {f"{prefix}{key}_ms": value for key, value in split.items()}
    return result


def compare_step(context: Context, ours, upstream, rounds: int) -> dict[str, float]:
    """Milliseconds of ours and upstream's, where there is one, and the ratio with its 10 and 90 % quantiles."""
    timed = [call and partial(seconds, call, torch.device(context.device)) for call in (ours, upstream)]
    found = compare(*timed, rounds)
    names = {"ours_seconds": "step_ms", "peer_seconds": "upstream_step_ms"}
    row = {names[key]: 1e3 * value for key, value in found.items() if key in names}
    return row | {key: value for key, value in found.items() if key.startswith("ratio")}


def outputs(parts: Parts) -> dict[str, Tensor]:
    """The outputs that are compared."""
    return {name: parts[part]().float().cpu() for part, name in (("UNet", "unet"), ("guidance", "gradient"))}


def differences(parts: Parts, upstream_parts: Parts, exact: dict[str, Tensor]) -> dict[str, float]:
    """Of UNet and guidance: ours and upstream's from float32, ours from upstream's."""
    found = {}
    own, others = outputs(parts), outputs(upstream_parts) if upstream_parts else {}
    for name, output in own.items():
        found[f"{name}_error"] = relative_difference(output, exact[name])
        if others:
            found[f"{name}_upstream_error"] = relative_difference(others[name], exact[name])
            found[f"{name}_max_difference"] = float((output - others[name]).abs().max())
            found[f"{name}_from_upstream"] = relative_difference(output, others[name])
    return found


def floor(context: Context, ours: Implementation, parts: Parts) -> dict[str, float]:
    """FLOPs of a step, and the time that they or reading the weights once a network would take at the ceilings."""
    flops = count_flops(parts["guided step"])
    parameters = [*ours.model.parameters(), *ours.classifier.parameters()]
    found = {"tflop": flops / 1e12}
    rows = {row["what"]: row for row in read_rows(context.out) if row["stage"] == "probe" and "error" not in row}
    top, copying = rows.get("ceiling float32" if context.tiny else "ceiling fp16"), rows.get("copy")
    if top and copying:
        tflops, gigabytes = top["matmul_tflops"], sum(p.numel() * p.element_size() for p in parameters) / 1e9
        limits = (found["tflop"] / tflops, gigabytes / copying["gb_per_s"])
        found |= {"ceiling_tflops": tflops, "floor_ms": 1e3 * max(limits)}
    return found


def ways_to_compile(context: Context) -> list[str]:
    """Both ways of compiling, or that which took fewer seconds in the first case that had both."""
    rows = [row for row in read_rows(context.out) if row["stage"] == "sampling" and "compile_s" in row]
    cost = {row["what"].split()[-1]: row["compile_s"] for row in rows}
    return [min(cost, key=cost.get)] if len(cost) == 2 else [REGIONAL, WHOLE]


@contextmanager
def compiled(ours: Implementation, way: str, tiny: bool) -> Iterator[Parts]:
    """The parts with our networks compiled: block by block, or whole as the programs do it."""
    networks = (ours.model, ours.classifier)
    blocks = [m for network in networks for m in network.modules() if isinstance(m, ResBlock | AttentionBlock)]
    chosen: list[nn.Module] = blocks if way == REGIONAL else list(networks) if tiny else []
    options = {"backend": "aot_eager"} if tiny else {}
    ours.compile = not chosen
    for module in chosen:
        module.compile(dynamic=False, **options)
    try:
        # One code serves all blocks, once a shape: more often than Dynamo expects.
        with torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096):
            yield ours.sampling()
    finally:
        ours.compile = False
        for module in chosen:
            module._compiled_call_impl = None
