"""A guided DDIM step beside upstream's in its half precision, as it is and compiled; the most wanted cases first."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.cases import SETTINGS, Pair, Setting, small
from benchmarks.gpu.record import Context, read_rows
from benchmarks.measure import paired, seconds
from benchmarks.sides import count_flops
from benchmarks.upstream import PeerUnavailable, load_peer
from guided_diffusion.models import compiling
from guided_diffusion.models.attention import AttentionBlock
from guided_diffusion.models.blocks import ResBlock

STEPS = 25
REGIONAL, WHOLE = "regional", "whole"
# Name, compiled too, share of the time; a case's rest goes to those after it.
CASES = (
    ("published-64-b8", True), ("published-256-b8", False), ("published-256-b32", True), ("published-64-b32", True),
    ("published-128-b8", False), ("published-256-uncond-b8", False), ("published-64-b1", False),
    ("published-256-b1", False), ("published-128-b32", False), ("published-256-uncond-b32", False),
    ("published-64-b64", False), ("published-256-b64", False), ("published-128-b1", False),
    ("published-128-b64", False), ("published-256-uncond-b1", False), ("published-256-uncond-b64", False),
)  # fmt: skip


def run(context: Context) -> None:
    """Measure case after case."""
    peer = find_peer()
    cases = CASES
    if context.tiny:
        cases = (("tiny", True),)
    for i, (name, compile) in enumerate(cases):
        weights = [3 if compiled else 1 for _, compiled in cases[i:]]
        setting = tiny() if context.tiny else SETTINGS[name]
        limit = max(20.0, 2 * context.left() * weights[0] / sum(weights))
        context.case(name, limit, partial(measure, context, name, setting, peer, compile))
        gc.collect()
        torch.compiler.reset()
        if torch.device(context.device).type == "cuda":
            torch.cuda.empty_cache()


def tiny() -> Setting:
    """32 channels and one block at 8 pixels, with attention."""
    base = small(8, 2)
    model = {"num_channels": 32, "channel_mult": "1", "num_res_blocks": 1, "attention_resolutions": "8"}
    classifier = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (1,)}
    return Setting(8, 2, base.model | model, base.classifier | classifier)


def find_peer() -> object | None:
    """Upstream's modules; None where there are none, which the command has said already."""
    try:
        return load_peer()
    except PeerUnavailable:
        return None


def measure(context: Context, name: str, setting: Setting, peer: object | None, compile: bool) -> None:
    """One case: outputs compared, the parts' times, a whole loop, and the same compiled."""
    device = torch.device(context.device)
    rounds = 2 if context.tiny else 10
    exact = reference(setting, device)
    with torch.device(device):
        pair = Pair(setting, peer, device, half=not context.tiny)
    parts = pair.sampling()
    floors = floor(context, parts, pair)
    row = {"peak_gib": None} | times(context, parts, device, rounds) | differences(parts, exact)
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    add(context, name, row, floors, setting)
    own = parts["guided step"][0]
    start = time.perf_counter()
    seconds(lambda: [own() for _ in range(STEPS)], device)
    context.add(f"{name} {STEPS} steps run", images_per_s=setting.batch_size / (time.perf_counter() - start))
    if not compile:
        return
    eager = own()
    for how in ways(context):
        said: list[str] = []  # "is kept as it is", where compiling failed or changed the numbers
        warnings = mock.patch.object(compiling.logger, "warning", said.append)
        with warnings, compiled(pair, how, context.tiny) as own_parts:
            start = time.perf_counter()
            found = {part: calls[0]() for part, calls in own_parts.items()}
            seconds_compiling = time.perf_counter() - start
            row = times(context, own_parts, device, rounds)
            row |= {"compile_s": seconds_compiling, "from_eager": relative(found["guided step"], eager)}
            if said:
                row["error"] = " ".join(said)
            add(context, f"{name} {how}", row, floors, setting)


def add(context: Context, name: str, row: dict, floors: dict, setting: Setting) -> None:
    """Add a case's row, with images a second and the shares of the ceiling and of the floor."""
    step = row["step_ms"] / 1e3
    row |= {"images_per_s": setting.batch_size / (STEPS * step), **floors}
    if floors.get("floor_ms"):
        row["of_ceiling"] = floors["tflop"] / floors["ceiling_tflops"] / step
    context.add(name, **row)


def reference(setting: Setting, device: torch.device) -> dict[str, Tensor]:
    """What ours computes in float32, with the same weights and inputs."""
    with torch.device(device):
        parts = Pair(setting, None, device, half=False).sampling()
    return {name: parts[name][0]().float().cpu() for name in ("UNet", "guidance")}


def times(context: Context, parts: dict, device: torch.device, rounds: int) -> dict[str, float | None]:
    """Milliseconds of the step and its parts, upstream's, and the ratio with its 10 and 90 % quantiles."""
    own, theirs = {}, {}
    result = {}
    for name in ("UNet", "classifier forward", "guidance", "guided step"):
        calls = parts[name]
        if calls[1] is None:
            for _ in range(2):
                calls[0]()
            own[name] = sorted(seconds(calls[0], device) for _ in range(rounds))[rounds // 2]
            continue
        found = paired(*calls, device, rounds)
        own[name], theirs[name] = found["ours_seconds"], found["peer_seconds"]
        if name == "guided step":
            result = {key: found[key] for key in ("ratio", "ratio_p10", "ratio_p90")}
    for prefix, side in (("", own), ("upstream_", theirs)):
        if side:
            step, unet, forward, both = (
                1e3 * side[key] for key in ("guided step", "UNet", "classifier forward", "guidance")
            )
            split = {"step": step, "unet": unet, "forward": forward, "backward": both - forward}
            split["rest"] = step - unet - both
            result |= {f"{prefix}{key}_ms": value for key, value in split.items()}
    return result


def differences(parts: dict, exact: dict[str, Tensor]) -> dict[str, float]:
    """Of UNet and guidance: ours and upstream's from float32, ours from upstream's."""
    found = {}
    for part, name in (("UNet", "unet"), ("guidance", "gradient")):
        own, theirs = (call and call().float().cpu() for call in parts[part])
        found[f"{name}_error"] = relative(own, exact[part])
        if theirs is not None:
            found[f"{name}_upstream_error"] = relative(theirs, exact[part])
            found[f"{name}_max_difference"] = float((own - theirs).abs().max())
            found[f"{name}_from_upstream"] = relative(own, theirs)
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def floor(context: Context, parts: dict, pair: Pair) -> dict[str, float]:
    """FLOPs of a step, and the time that they or reading the weights once a network would take at the ceilings."""
    flops = count_flops(parts["guided step"][0])
    bytes_read = sum(
        parameter.numel() * parameter.element_size()
        for network in (pair.models[0], pair.classifiers[0])
        for parameter in network.parameters()
    )
    found = {"tflop": flops / 1e12}
    rows = {row["what"]: row for row in read_rows(context.out) if row["stage"] == "probe" and "error" not in row}
    top, copying = rows.get("ceiling float32" if context.tiny else "ceiling fp16"), rows.get("copy")
    if top and copying:
        tflops = top["matmul_tflops"]
        limits = (flops / 1e12 / tflops, bytes_read / 1e9 / copying["gb_per_s"])
        found |= {"ceiling_tflops": tflops, "floor_ms": 1e3 * max(limits)}
    return found


def ways(context: Context) -> list[str]:
    """Both ways of compiling, or that which took fewer seconds in the first case that had both."""
    if context.tiny:
        return [REGIONAL, WHOLE]
    rows = [row for row in read_rows(context.out) if row["stage"] == "sampling" and "compile_s" in row]
    cost = {row["what"].split()[-1]: row["compile_s"] for row in rows}
    return [min(cost, key=cost.get)] if len(cost) == 2 else [REGIONAL, WHOLE]


@contextmanager
def compiled(pair: Pair, how: str, tiny: bool) -> Iterator[dict[str, tuple[Callable, Callable]]]:
    """The parts with our networks compiled: block by block, or whole as the programs do it."""
    networks = (pair.models[0], pair.classifiers[0])
    blocks = [m for network in networks for m in network.modules() if isinstance(m, ResBlock | AttentionBlock)]
    chosen: list[nn.Module] = blocks if how == REGIONAL else list(networks) if tiny else []
    options = {"backend": "aot_eager"} if tiny else {}
    pair.compile = not chosen
    for module in chosen:
        module.compile(dynamic=False, **options)
    try:
        # One code serves all blocks, once a shape: more often than Dynamo expects.
        with torch._dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096):
            yield pair.sampling()
    finally:
        pair.compile = False
        for module in chosen:
            module._compiled_call_impl = None
