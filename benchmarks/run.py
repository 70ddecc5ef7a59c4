"""Ours beside the peer, interleaved, on the same weights and inputs; outputs compared. On CPUs each has its process.

    python -m benchmarks.run sampling --config 32x32 --config 64x64
    python -m benchmarks.run training --device cuda --half --config published-256-b8

Our evaluator beside others, with flags of its own (see ``evaluation.py``):

    python -m benchmarks.run evaluation --upstream CHECKOUT

Prints a table on stderr, the JSON on stdout, and writes it to benchmarks/results/<device>-<what>-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from contextlib import ExitStack

import torch

from benchmarks import evaluation
from benchmarks.cases import SETTINGS
from benchmarks.machine import cpu_name, result_path
from benchmarks.measure import ceilings, paired_seconds
from benchmarks.sides import OURS, PEER, Side, SideElsewhere, Work
from benchmarks.upstream import load_peer
from guided_diffusion.io.atomic import write_json

HEADER = ("config", "part", "ours ms", "peer ms", "ratio", "10-90 %", "GFLOP", "of ceiling", "difference")


def main() -> None:
    if sys.argv[1:2] == ["evaluation"]:
        return evaluation.main(sys.argv[2:])
    args = parse_arguments()
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    report = {"what": args.what, "half": args.half, "compile": args.compile, **machine(device)}
    report |= peer_report(args, device)
    path = result_path(report["device"], f"{args.what}{'-half' * args.half}{'-compiled' * args.compile}")
    write_json(path, report)
    print(json.dumps(report, indent=2))
    print(f"written to {path.resolve()}", file=sys.stderr)


def peer_report(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Ours beside the peer: the machine's ceilings, the peer's version, and a row for each config and part."""
    print(" | ".join(HEADER), file=sys.stderr)
    top = ceilings(device, torch.float16 if args.half else torch.float32)
    rows = []
    for config in args.config:
        work = Work(args.what, config, args.device, args.half, args.compile, args.threads)
        with ExitStack() as stack:
            if device.type == "cpu":
                ours, theirs = (stack.enter_context(SideElsewhere(work, side)) for side in (OURS, PEER))
            else:
                ours, theirs = (Side(work, side) for side in (OURS, PEER))
            for part in ours.names():
                rows.append({"config": config, "part": part, **measure(ours, theirs, part, args.rounds, top)})
                print(line(rows[-1]), file=sys.stderr, flush=True)
    return {"ceilings_gflops": top, "peer": load_peer().source, "rows": rows}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sampling", "training"))
    parser.add_argument("--config", action="append", choices=sorted(SETTINGS), help="default: 32x32 and 64x64")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--half", action="store_true", help="float16: ours under autocast, the peer's use_fp16")
    parser.add_argument("--compile", action="store_true", help="sampling: ours compiled, the peer as it is")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of timed runs (default 10)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 (default): torch's choice")
    args = parser.parse_args()
    args.config = args.config or ["32x32", "64x64"]
    return args


def measure(ours: Side, theirs: Side, part: str, rounds: int, top: dict[str, float]) -> dict[str, float]:
    """Times, ratio, operations and the relative difference of the outputs."""
    a, b = ours.output(part), theirs.output(part)
    difference = float((a - b).abs().max() / b.abs().max())
    result = paired_seconds(lambda: ours.seconds(part), lambda: theirs.seconds(part), rounds)
    gflop = ours.flops(part) / 1e9
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
    """What the numbers were taken on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name, "device_type": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "date": str(datetime.date.today()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
