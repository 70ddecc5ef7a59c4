"""The stage of all checks: networks, programs and evaluation; tests/benchmarks/test_cuda.py runs them under pytest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import torch

from benchmarks.builders import write_images
from benchmarks.gpu import checks, evaluation_checks, program_checks
from benchmarks.gpu.record import Context, run_all
from benchmarks.gpu.sampling import find_upstream
from benchmarks.programs import finish, read_csv, start


def run(context: Context) -> None:
    """Run every check; one that fails is a result, and the next begins."""
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    folder = context.out / "made"
    shutil.rmtree(folder, ignore_errors=True)
    two = folder / "two"
    # Compiled networks and programs of two processes are checked beside the others.
    compiled = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu.stage", "compiled_checks", *sys.argv[2:]])
    flags = program_checks.guided(two)
    train = program_checks.JOBS["classifier_train"] | {
        "data_dir": write_images(two / "files", 8, 4, 8), "iterations": 3, "log_dir": two / "train",
    }  # fmt: skip
    running = start("scripts/classifier_sample.py", flags | {"log_dir": two / "two"}, context.device, 2)
    running += start("scripts/classifier_train.py", train, context.device, 2)

    def two_processes() -> None:
        """They draw the images that one draws, but for rounding, and train."""
        finish(running)
        alone = program_checks.call("classifier_sample", two / "alone", **flags)
        program_checks.assert_same_images(two / "two", alone)
        losses = [float(row["train_loss"]) for row in read_csv(two / "train" / "progress.csv")]
        assert len(losses) == 3 and np.isfinite(losses).all()

    run_all(context, {
        **checks.CHECKS,
        **(checks.UPSTREAM_CHECKS if find_upstream() else {}),  # without upstream the command has said so
        **{name: partial(check, folder / name) for name, check in program_checks.CHECKS.items()},
        **evaluation_checks.CHECKS,
        "two processes": two_processes,
    })  # fmt: skip
    if status := compiled.wait():
        raise RuntimeError(f"compiled_checks ended with status {status}")
