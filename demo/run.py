"""The whole job on handwritten digits: train, sample, evaluate, report.

    python demo/run.py            # or: make demo; the report is runs/demo/report.html

Interrupted? The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for runs without installation

from demo.plan import FULL, QUICK, Plan  # noqa: E402
from ed_dpm_patches.reproduce.book import short  # noqa: E402
from ed_dpm_patches.reproduce.runner import Runner  # noqa: E402
from ed_dpm_patches.reproduce.steps import claim  # noqa: E402
from guided_diffusion.dist_util import run_main  # noqa: E402

# One thread a process: two processes share two cores, and more threads would fight for them. Two runs at a time are
# faster than one run of two processes, most of whose time would be their start.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="folder of all files")
    parser.add_argument("--quick", action="store_true", help="a few samples and iterations, to test the machinery")
    args = parser.parse_args()
    settings = QUICK if args.quick else FULL
    plan = Plan(short(args.out), settings)
    os.chdir(ROOT)

    claim(plan.out / "settings.json", dataclasses.asdict(settings))
    started, runner = time.perf_counter(), Runner(plan.out, ENVIRONMENT, show=False)
    print(f"logs: {runner.logs}", flush=True)
    runner.run(plan.writing() + plan.training())
    runner.run(plan.sampling(), at_once=2)
    runner.run(plan.evaluation(), at_once=2)

    from demo.report import write_report  # matplotlib only where it is used

    print("drawing the report", flush=True)
    steps = [*plan.writing(), *plan.training(), *plan.sampling(), *plan.evaluation()]
    table = write_report(plan, commands=[runner.line(step.command) for step in steps])
    elapsed = time.perf_counter() - started
    print(f"\n{table}\n\ntotal time: {elapsed:.0f} s\nreport: {(plan.out / 'report.html').absolute()}")


if __name__ == "__main__":
    run_main(main)
