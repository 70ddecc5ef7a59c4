"""The whole job on handwritten digits: train, sample, evaluate, report.

    python experiments/digits/run.py            # or: make demo; the report is runs/demo/report.html

It runs the table `demo` of the recipes beside it, as `ed-dpm run demo --recipes experiments/digits/recipes` does.
After an interruption the same command resumes.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

from experiments.commands import Commands
from experiments.digits.page import TABLE, TRACED_SCALE, Page
from experiments.plan import plan, preparation
from experiments.runner import Runner
from experiments.spec import Spec, short
from experiments.spec_files import load
from experiments.steps import claim
from guided_diffusion.distributed.shutdown import run_main
from guided_diffusion.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

RECIPES = Path("experiments/digits/recipes")


def quick(spec: Spec) -> Spec:
    """The spec with so few samples, steps and iterations that it means nothing: everything happens, fast."""
    networks = dict(spec.networks)
    for name, network in networks.items():
        if network.training:
            few = {"iterations": 40 if name == spec.features else 20}
            networks[name] = replace(network, training=replace(network.training, flags=network.training.flags | few))
    few = {"num_samples": 40, "batch_size": 20, "timestep_respacing": "ddim5"}
    runs = {name: replace(run, flags=run.flags | few) for name, run in spec.runs.items()}
    return replace(spec, networks=networks, runs=runs, seeds=(0,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "demo", help="folder of all files")
    parser.add_argument("--quick", action="store_true", help="a few samples and iterations, to test the machinery")
    args = parser.parse_args()
    out = short(args.out)
    os.chdir(ROOT)
    spec = load(ROOT / RECIPES)
    rows = spec.tables[TABLE].rows
    spec = quick(spec) if args.quick else spec
    if (out / "settings.json").exists():
        raise InputError(f"{out}: found a demo of an earlier version, expected none: remove it, or use another --out")
    claim(out / "book.json", {"recipes": str(RECIPES), "rehearsal": False, "quick": args.quick})

    # One thread a process: two processes share two cores, and more threads would fight for them. Of what comes after
    # training two steps at a time are faster than one of two processes, most of whose time would be their start.
    started, runner = time.perf_counter(), Runner(out, {"OMP_NUM_THREADS": "1"}, show=False)
    print(f"logs: {runner.logs}", flush=True)
    commands = Commands(spec, out=out, processes=1)
    first = preparation(Commands(spec, out=out, processes=2), rows)
    made = {step.name for step in first}
    traced = replace(commands, trace=True)  # slower, so only what the page looks at
    traced = {step.name: step for step in plan(traced, rows) if f"-{TRACED_SCALE:g}-" in step.name}
    then = [traced.get(step.name, step) for step in plan(commands, rows) if step.name not in made]
    runner.run(first)
    runner.run(then, jobs=2)

    print("drawing the report", flush=True)
    table = Page(commands).write([runner.line(step.command) for step in (*first, *then)])
    elapsed = time.perf_counter() - started
    print(f"\n{table}\n\ntotal time: {elapsed:.0f} s\nreport: {(out / 'report.html').absolute()}")


if __name__ == "__main__":
    run_main(main)
