"""The device, its driver, torch, and its ceilings: matrix products, a convolution, copying."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from benchmarks.gpu.record import Context
from benchmarks.machine import cpu_name
from benchmarks.measure import ceilings, seconds


def run(context: Context) -> None:
    """Record the device and measure its ceilings."""
    device = torch.device(context.device)
    cuda = device.type == "cuda"
    context.add(
        "device", name=torch.cuda.get_device_name(device) if cuda else cpu_name(), driver=driver() if cuda else None,
        torch=torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version() if cuda else None,
        python=platform.python_version(), threads=torch.get_num_threads(),
    )  # fmt: skip
    kinds = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in kinds.items():
        context.case(f"ceiling {name}", 30, lambda name=name, dtype=dtype: measure(context, device, name, dtype))
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        context.case("ceiling tf32", 30, lambda: measure(context, device, "tf32", torch.float32))
    context.case("copy", 20, lambda: copy(context, device))


def measure(context: Context, device: torch.device, name: str, dtype: torch.dtype) -> None:
    """Record TFLOP/s of a large matrix product and of a large convolution."""
    top = ceilings(device, dtype, repeats=2 if context.tiny else 10, tiny=context.tiny)
    context.add(f"ceiling {name}", **{f"{kind}_tflops": value / 1e3 for kind, value in top.items()})


def copy(context: Context, device: torch.device) -> None:
    """Record GB/s of reading and writing memory."""
    source = torch.empty(2**24 if context.tiny else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(10))
    context.add("copy", gb_per_s=2 * source.numel() / best / 1e9)


def driver() -> str | None:
    """The driver's version by nvidia-smi, None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return found.stdout.strip().splitlines()[0] if found.stdout.strip() else None
