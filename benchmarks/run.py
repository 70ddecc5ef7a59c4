"""Ours beside upstream, interleaved, on the same weights and inputs; outputs compared. On CPUs each has its process.

    python -m benchmarks.run sampling --config 32x32 --config 64x64
    python -m benchmarks.run training --device cuda --half --config published-256-b8

Our evaluator beside others, with flags of its own (see ``evaluation.py``):

    python -m benchmarks.run evaluation --upstream CHECKOUT

Prints a table on stderr and the JSON on stdout, and writes this to benchmarks/results/<device>-<what>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import evaluation
from benchmarks.builders import SETTINGS
from benchmarks.implementations import Implementation, Parts, half_dtype
from benchmarks.machine import cpu_name, save_result
from benchmarks.measure import ceilings, compare, relative_difference, seconds
from benchmarks.upstream import load_upstream
from experiments.frontier.work import count_flops
from guided_diffusion.system.malloc import keep_freed_memory

HEADER = ("config", "part", "ours ms", "upstream ms", "ratio", "10-90 %", "GFLOP", "of ceiling", "difference")
OURS, UPSTREAM = "ours", "upstream"
Ask = Callable[..., Any]  # a function, and the name of a part to apply it to, see `apply`

_parts: dict[str, Parts] = {}  # of the implementations in this process


def main() -> None:
    if sys.argv[1:2] == ["evaluation"]:
        return evaluation.main(sys.argv[2:])
    args = parse_arguments()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    report = {"what": args.what, "half": args.half, "compile": args.compile, **machine(device)}
    print(" | ".join(HEADER), file=sys.stderr)
    top = ceilings(device, half_dtype(device) if args.half else torch.float32)
    report |= {"ceilings_gflops": top, "peer": load_upstream().source, "rows": []}
    for config in args.config:
        with ExitStack() as stack:
            ours, upstream = (stack.enter_context(implementation(args, config, name)) for name in (OURS, UPSTREAM))
            for part in ours(list):
                row = {"config": config, "part": part, **measure(ours, upstream, part, args, top)}
                report["rows"].append(row)
                print(line(row), file=sys.stderr, flush=True)
    print(json.dumps(report, indent=2))
    save_result(report["device"], f"{args.what}{'-half' * args.half}{'-compiled' * args.compile}", report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sampling", "training"))
    parser.add_argument("--config", action="append", choices=sorted(SETTINGS), help="default: 32x32 and 64x64")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--half", action="store_true", help="float16: ours under autocast, upstream by its use_fp16; "
                        "on a CPU ours in bfloat16, upstream in float32")  # fmt: skip
    parser.add_argument("--compile", action="store_true", help="sampling: ours compiled, upstream as it is")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of timed runs (default 10)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default): torch's choice")
    args = parser.parse_args()
    args.config = args.config or ["32x32", "64x64"]
    return args


@contextmanager
def implementation(args: argparse.Namespace, config: str, name: str) -> Iterator[Ask]:
    """Build an implementation, on a CPU in a process of its own, whose memory it has to itself."""
    if torch.device(args.device).type != "cpu":
        build(args, config, name)
        yield partial(apply, name)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=build, initargs=(args, config, name)) as process:
        yield lambda *call: process.submit(apply, name, *call).result()


def build(args: argparse.Namespace, config: str, name: str) -> None:
    """Build an implementation in this process."""
    device = torch.device(args.device)
    if device.type == "cpu" and name == OURS:
        keep_freed_memory()  # as our programs do; upstream's leave the C library as it is
    if args.threads:
        torch.set_num_threads(args.threads)
    upstream = load_upstream() if name == UPSTREAM else None
    built = Implementation(SETTINGS[config], device, args.half, upstream, args.compile)
    _parts[name] = getattr(built, args.what)()


def apply(name: str, function: Callable, part: str = "") -> Any:
    """Apply a function to a part of the implementation in this process, or to the dict of all."""
    return function(_parts[name][part] if part else _parts[name])


def compute(work: Callable[[], Tensor]) -> np.ndarray:
    """The result of a part, float32."""
    return work().float().cpu().numpy()


def measure(ours: Ask, upstream: Ask, part: str, args: argparse.Namespace, top: dict[str, float]) -> dict[str, float]:
    """Times, ratio, operations and the relative difference of the outputs."""
    difference = relative_difference(ours(compute, part), upstream(compute, part))
    timed = partial(seconds, device=torch.device(args.device))
    result = compare(lambda: ours(timed, part), lambda: upstream(timed, part), args.rounds)
    gflop = ours(count_flops, part) / 1e9
    share = gflop / result["ours_seconds"] / max(top.values())
    return {**result, "gflop": gflop, "share_of_ceiling": share, "relative_difference": difference}


def line(row: dict) -> str:
    """One row of the table."""
    return " | ".join(
        (
            row["config"], row["part"], f"{row['ours_seconds'] * 1e3:.1f}", f"{row['peer_seconds'] * 1e3:.1f}",
            f"{row['ratio']:.2f}", f"{row['ratio_p10']:.2f}-{row['ratio_p90']:.2f}", f"{row['gflop']:.1f}",
            f"{row['share_of_ceiling']:.0%}", f"{row['relative_difference']:.1e}",
        )
    )  # fmt: skip


def machine(device: torch.device) -> dict[str, str | int]:
    """The machine and versions that the numbers were taken with."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name, "device_type": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "date": str(datetime.date.today()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
