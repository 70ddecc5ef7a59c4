"""All measurements on a GPU: correctness, speed beside upstream, training, whole programs. A failure stops nothing.

    python -m benchmarks.gpu --out DIR
    python -m benchmarks.gpu --out DIR --device cpu --tiny

Run from the root of the tree, with a Python that has torch, NumPy, SciPy, Pillow and tqdm. Every stage is a process
group of its own with a limit of its own; results are in DIR/results.jsonl as soon as they are measured, and
DIR/summary.md and summary.json are rewritten after every stage. Exit status: 0, or 1 if something failed or was cut.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import report
from benchmarks.gpu.record import RESULTS, append
from benchmarks.gpu.stage_runner import GRACE, adopt_orphans, run_stage

ROOT = Path(__file__).resolve().parents[2]
STAGES = {"probe": 1, "correctness": 3, "sampling": 6, "training": 2, "end-to-end": 3}  # shares of the time
NEEDED = {"torch": "torch", "numpy": "numpy", "scipy": "scipy", "PIL": "pillow", "tqdm": "tqdm"}
UPSTREAM = ROOT / ".peer" / "guided-diffusion-sdk-1.0.0"
RESERVE = 2 * GRACE + 1.0  # seconds of a stage's share that ending it and the report take


def main() -> None:
    start = time.monotonic()
    args = parse_arguments()
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"error: missing: {', '.join(missing)}; expected a Python that has them", file=sys.stderr)
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / RESULTS).unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment["OPENAI_LOGDIR"] = str((args.out / "logs").resolve())
    environment["ED_DPM_TEST_DEVICE"] = args.device  # of the checks
    if args.tiny:
        environment["OMP_NUM_THREADS"] = "1"  # a second thread waits more than it works
    baseline = args.baseline or UPSTREAM
    if (baseline / "guided_diffusion").is_dir():
        environment["GUIDED_DIFFUSION_PEER"] = str(baseline.resolve())
    else:
        environment["GUIDED_DIFFUSION_PEER"] = os.devnull
        message = f"missing: upstream (found none in {baseline}): ours is measured alone; give --baseline DIR"
        print(message, flush=True)
        append(args.out, {"stage": "plan", "what": "upstream", "error": message})
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # raises, so that the stage is ended on the way out

    end = start + 60 * args.minutes
    for i, stage in enumerate(args.only):
        ahead = sum(STAGES[name] for name in args.only[i:])
        limit = (end - time.monotonic()) * STAGES[stage] / ahead - RESERVE
        print(f"{stage}: at most {max(limit, 0):.0f} s", flush=True)
        append(args.out, {"stage": stage, "what": "stage", **run(stage, limit, args, environment)})
        report.write(args.out)
    lines, fine = report.write(args.out)
    print("\n".join(lines))
    sys.exit(0 if fine else 1)


def run(stage: str, limit: float, args: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Run one stage, see `run_stage`; one without time is cut before it starts."""
    if limit <= 0:
        return {"status": "cut", "seconds": 0.0, "log": ["no time was left for it"]}
    context = {"stage": stage, "out": str(args.out.resolve()), "device": args.device, "tiny": args.tiny}
    context["deadline"] = time.monotonic() + limit  # the same clock in all processes of a machine
    command = [sys.executable, "-m", "benchmarks.gpu.stage", stage.replace("-", "_"), json.dumps(context)]
    return run_stage(command, args.out / f"{stage}.log", limit, environment, ROOT)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; earlier ones are replaced")
    parser.add_argument("--minutes", type=float, default=9.0, help="everything has ended by then (default 9)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
                        help=f"these stages: {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--baseline", type=Path, help="folder of upstream's guided_diffusion (default: .peer/)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:N or cpu")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that every stage works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
